//! The `outrigger` program. Everything it does is in the library; see [`outrigger::cli`].

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    outrigger::cli::main()
}
