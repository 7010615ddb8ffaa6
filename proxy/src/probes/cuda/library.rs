//! What a library exports of the functions that are looked at, and where probes can be put.
//!
//! A driver's library is 100 MB: only its tables of dynamic symbols and the first bytes of each function are read. Nothing
//! that a file says is believed without a look: what is no library has no functions, and gives no error.

use std::{collections::BTreeSet, fs::File, os::unix::fs::FileExt};

use object::{
    Architecture, Object, ObjectSegment, ObjectSymbol, ReadCache, SymbolFlags, SymbolKind, elf,
};
use outrigger_config::validated as config;
use outrigger_probes::{Api, Detail, FUNCTIONS, function};

use super::{
    super::kernel::Release,
    prologue::{ENOUGH, cheap_offset},
};

/// Symbols that are looked through at most.
const SYMBOLS_MOST: usize = 200_000;

/// What decides how a library is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) settings: config::CudaProbe,
    pub(super) kernel: Release,
}

/// Where a probe can be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Site {
    /// Bytes from the beginning of the file.
    pub(super) offset: u64,
    /// The function's number.
    pub(super) function: usize,
}

/// What was found in one library.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Library {
    /// Each place once, though it may have several names.
    pub(super) sites: Vec<Site>,
    /// Functions of which at least one variant would have to be single-stepped, and is not looked at.
    pub(super) refused: BTreeSet<usize>,
}

/// A function as the table of symbols has it.
struct Export {
    function: usize,
    /// Where it is in the file.
    offset: u64,
}

impl Library {
    /// Reads what is needed of it.
    pub(super) fn read(file: File, api: Api, rules: Rules) -> Self {
        let Ok(code) = file.try_clone() else { return Self::default() };
        let exports = exports(file, api).unwrap_or_default();
        Self::decide(exports, rules, |offset| {
            let mut first = [0; ENOUGH];
            let count = code.read_at(&mut first, offset).unwrap_or(0);
            first[..count].to_vec()
        })
    }

    fn decide(exports: Vec<Export>, rules: Rules, code: impl Fn(u64) -> Vec<u8>) -> Self {
        let mut library = Library::default();
        let mut places = BTreeSet::new();
        for Export { function, offset } in exports {
            if FUNCTIONS[function].detail == Detail::Counted && !rules.settings.launches {
                continue;
            }
            let cheap = cheap_offset(&code(offset), rules.kernel);
            let Some(inside) = cheap.or(rules.settings.single_step.then_some(0)) else {
                library.refused.insert(function);
                continue;
            };
            // One place may have two names, and is one call.
            if places.insert(offset) {
                library.sites.push(Site { offset: offset + inside, function });
            }
        }
        library.sites.sort_unstable();
        library
    }
}

fn exports(file: File, api: Api) -> Option<Vec<Export>> {
    let cache = ReadCache::new(file);
    let library = object::File::parse(&cache).ok()?;
    if library.architecture() != Architecture::X86_64 {
        return None;
    }
    let segments: Vec<Segment> = library
        .segments()
        .filter(|segment| segment.permissions().executable())
        .map(|it| Segment { address: it.address(), size: it.size(), offset: it.file_range().0 })
        .collect();
    let functions = library.dynamic_symbols().take(SYMBOLS_MOST).filter(|symbol| {
        // Of an indirect function the symbol is what chooses, once, which code it is.
        let is_indirect = matches!(symbol.flags(), SymbolFlags::Elf { st_info, .. }
            if st_info & 0xf == elf::STT_GNU_IFUNC);
        symbol.is_definition() && symbol.kind() == SymbolKind::Text && !is_indirect
    });
    let exports = functions.filter_map(|symbol| {
        let function = function(api, symbol.name().ok()?)?;
        let offset = segments.iter().find_map(|segment| segment.offset_of(symbol.address()))?;
        Some(Export { function, offset })
    });
    Some(exports.collect())
}

/// A part of a file that is mapped to be executed.
struct Segment {
    address: u64,
    size: u64,
    offset: u64,
}

impl Segment {
    /// Where in the file an address lies.
    fn offset_of(&self, address: u64) -> Option<u64> {
        let inside = address.checked_sub(self.address).filter(|inside| *inside < self.size)?;
        self.offset.checked_add(inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const PUSH: &[u8] = &[0x55];
    const STEPPED: &[u8] = &[0x48, 0x89, 0xf8];
    const MARKED: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa, 0x55];

    fn rules(launches: bool, single_step: bool) -> Rules {
        let kernel = Release { major: 6, minor: 18 };
        Rules { settings: config::CudaProbe { launches, single_step }, kernel }
    }

    fn decided(
        rules: Rules,
        exports: &[(&str, u64, &'static [u8])],
    ) -> (Vec<(u64, &'static str)>, Vec<&'static str>) {
        let number = |name: &str| function(Api::Cuda, name).expect("of the table");
        let list = exports
            .iter()
            .map(|(name, offset, _)| Export { function: number(name), offset: *offset });
        let library = Library::decide(list.collect(), rules, |offset| {
            let found = exports.iter().find(|export| export.1 == offset);
            found.map(|export| export.2.to_vec()).unwrap_or_default()
        });
        let name = |function: usize| FUNCTIONS[function].name;
        let sites = library.sites.iter().map(|site| (site.offset, name(site.function))).collect();
        (sites, library.refused.into_iter().map(name).collect())
    }

    #[test]
    fn what_would_be_single_stepped_is_refused_unless_asked_for() {
        let exports = [
            ("cuMemAlloc_v2", 100, PUSH),
            ("cuMemFree_v2", 200, MARKED),
            ("cuCtxSynchronize", 300, STEPPED),
        ];
        let (sites, refused) = decided(rules(false, false), &exports);
        assert_eq!(sites, [(100, "cuMemAlloc"), (204, "cuMemFree")]);
        assert_eq!(refused, ["cuCtxSynchronize"]);
        let (sites, refused) = decided(rules(false, true), &exports);
        assert_eq!(sites.last(), Some(&(300, "cuCtxSynchronize")));
        assert!(refused.is_empty() && sites.len() == 3, "{sites:?}");
    }

    #[test]
    fn a_place_with_two_names_is_one_and_launches_are_left_alone() {
        let exports = [
            ("cuMemcpy", 100, PUSH),
            ("cuMemcpy_ptds", 100, PUSH),
            ("cuLaunchKernel", 200, PUSH),
            ("cuLaunchKernel_ptsz", 300, STEPPED),
        ];
        let (sites, refused) = decided(rules(false, false), &exports);
        assert_eq!((sites, refused), (vec![(100, "cuMemcpy")], vec![]));
        let (sites, refused) = decided(rules(true, false), &exports);
        assert_eq!(sites, [(100, "cuMemcpy"), (200, "cuLaunchKernel")]);
        assert_eq!(refused, ["cuLaunchKernel"], "a variant that is not looked at is said");
    }

    #[test]
    fn what_is_no_library_has_no_functions() {
        let own = std::env::current_exe().expect("a path");
        let image = std::fs::read(own).expect("readable");
        let shortened = |length: usize| {
            let mut file = tempfile();
            file.write_all(&image[..length.min(image.len())]).expect("writable");
            Library::read(file, Api::Cuda, rules(true, true))
        };
        for length in [0, 3, 64, 500, 4096, 100_000, usize::MAX] {
            assert_eq!(shortened(length), Library::default(), "{length}");
        }
    }

    /// A file without a name.
    fn tempfile() -> File {
        let path = std::env::temp_dir().join(format!("outrigger-{}-library", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.expect("a temporary directory");
        std::fs::remove_file(path).expect("ours");
        file
    }

    #[test]
    fn an_address_is_looked_up_where_it_is_mapped_from() {
        let segment = Segment { address: 0x2000, size: 0x100, offset: 0x1000 };
        assert_eq!(segment.offset_of(0x2010), Some(0x1010));
        assert_eq!([0x1fff, 0x2100].map(|address| segment.offset_of(address)), [None, None]);
        let torn = Segment { offset: u64::MAX, ..segment };
        assert_eq!(torn.offset_of(0x2010), None);
    }
}
