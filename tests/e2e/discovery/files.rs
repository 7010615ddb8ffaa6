//! Files that list endpoints, changed in every way in which files are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger_tests::harness::{Call, DnsServer, Load, Proxy, RecordType, Says};
use outrigger_tests::sim::Simulator;
use tempfile::TempDir;

use super::{
    IN_TURN, NAME, REFRESHED, await_places, await_weights, config, looked_up, places, present,
    said_once, same_port, shown,
};
use crate::fleet::{await_ready, chat, error_code, one_backend_at, sim};

/// A directory with a list of endpoints in it.
struct Lists {
    directory: TempDir,
}

impl Lists {
    fn empty() -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    fn with(text: &str) -> Self {
        let lists = Self::empty();
        lists.write(text);
        lists
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("endpoints.yaml")
    }

    /// Writes into the file itself.
    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).expect("a file that can be written");
    }

    /// Renames another file over it.
    fn replace(&self, text: &str) {
        let draft = self.directory.path().join("endpoints.yaml.new");
        std::fs::write(&draft, text).expect("a file that can be written");
        std::fs::rename(draft, self.path()).expect("a file can be renamed beside itself");
    }

    /// Puts it there as Kubernetes mounts a ConfigMap, or swaps that: links into a directory of this generation.
    fn swap(&self, text: &str, generation: u32) {
        let directory = self.directory.path();
        let inner = format!("..generation_{generation}");
        std::fs::create_dir(directory.join(&inner)).expect("each generation is new");
        let file = directory.join(&inner).join("endpoints.yaml");
        std::fs::write(file, text).expect("a file that can be written");
        link(directory, "..data", &inner);
        if std::fs::read_link(self.path()).is_err() {
            link(directory, "endpoints.yaml", "..data/endpoints.yaml");
        }
    }

    /// The entries of a backend that is listed here.
    fn entries(&self) -> String {
        format!("[{{ file: '{}' }}]", self.path().display())
    }

    async fn proxy(&self, backend: &str) -> Proxy {
        Proxy::start(&one_backend_at(&self.entries(), backend, "")).await
    }
}

/// Makes `name` a link to `target`, at once.
fn link(directory: &Path, name: &str, target: &str) {
    let draft = directory.join("..link");
    std::os::unix::fs::symlink(target, &draft).expect("the directory is writable");
    std::fs::rename(&draft, directory.join(name)).expect("a link can be renamed beside itself");
}

/// A list of these.
fn list<'a>(simulators: impl IntoIterator<Item = &'a Simulator>) -> String {
    let line = |simulator: &Simulator| format!("- '{}'\n", simulator.addr);
    simulators.into_iter().map(line).collect()
}

#[tokio::test]
async fn a_list_that_is_written_over_takes_effect() {
    let (a, b) = (sim("a"), sim("b"));
    let lists = Lists::with(&list([&a]));
    let proxy = lists.proxy(IN_TURN).await;
    await_places(&proxy, &places([&a])).await;
    lists.write(&list([&b, &a]));
    await_places(&proxy, &places([&b, &a])).await;
    lists.write(&list([&b]));
    await_places(&proxy, &places([&b])).await;
    assert_eq!(chat().send(proxy.address()).await.by(), "b");
}

#[tokio::test]
async fn a_list_renamed_over_the_old_one_takes_effect_each_time() {
    let (a, b) = (sim("a"), sim("b"));
    let lists = Lists::with(&list([&a]));
    let proxy = lists.proxy(IN_TURN).await;
    for _ in 0..3 {
        lists.replace(&list([&a, &b]));
        await_places(&proxy, &places([&a, &b])).await;
        lists.replace(&list([&b]));
        await_places(&proxy, &places([&b])).await;
    }
}

#[tokio::test]
async fn a_configmap_that_is_swapped_takes_effect_each_time() {
    let (a, b) = (sim("a"), sim("b"));
    let lists = Lists::empty();
    lists.swap(&list([&a]), 0);
    let proxy = lists.proxy(IN_TURN).await;
    await_places(&proxy, &places([&a])).await;
    for generation in 0..3 {
        lists.swap(&list([&a, &b]), 1 + 2 * generation);
        await_places(&proxy, &places([&a, &b])).await;
        lists.swap(&list([&b]), 2 + 2 * generation);
        await_places(&proxy, &places([&b])).await;
    }
}

#[tokio::test]
async fn a_change_as_soon_as_the_proxy_is_up_is_not_missed() {
    let (a, b) = (sim("a"), sim("b"));
    for _ in 0..5 {
        let lists = Lists::with(&list([&a]));
        let proxy = lists.proxy(IN_TURN).await;
        lists.write(&list([&b]));
        await_places(&proxy, &places([&b])).await;
    }
}

#[tokio::test]
async fn an_invalid_list_changes_nothing_and_its_place_is_said_once() {
    let (a, b) = (sim("a"), sim("b"));
    let lists = Lists::with(&list([&a]));
    let proxy = lists.proxy(REFRESHED).await;
    await_places(&proxy, &places([&a])).await;
    lists.write("- '127.0.0.1:8000'\n- address: '127.0.0.1:70000'\n");
    // It is read again every second.
    proxy.await_metrics(|metrics| looked_up(metrics, "failure") >= 3.0).await;
    assert_eq!(present(&proxy).await, places([&a]));
    assert_eq!(chat().send(proxy.address()).await.by(), "a");
    let place = format!("{}:2:", lists.path().display());
    said_once(&proxy, &place).await;
    lists.write(&list([&a, &b]));
    await_places(&proxy, &places([&a, &b])).await;
    said_once(&proxy, "looked up again").await;
}

#[tokio::test]
async fn a_list_that_vanishes_changes_nothing() {
    let (a, b) = (sim("a"), sim("b"));
    let lists = Lists::with(&list([&a]));
    let proxy = lists.proxy(IN_TURN).await;
    await_places(&proxy, &places([&a])).await;
    std::fs::remove_file(lists.path()).expect("it is there");
    let line = proxy.await_log("can not be looked up").await;
    assert!(line.contains(&lists.path().display().to_string()), "{line}");
    assert_eq!(chat().send(proxy.address()).await.by(), "a");
    lists.write(&list([&b]));
    await_places(&proxy, &places([&b])).await;
}

#[tokio::test]
async fn an_empty_file_is_half_written_and_changes_nothing() {
    let (a, b) = (sim("a"), sim("b"));
    let lists = Lists::with(&list([&a]));
    let proxy = lists.proxy(IN_TURN).await;
    await_places(&proxy, &places([&a])).await;
    lists.write("");
    proxy.await_metrics(|metrics| looked_up(metrics, "failure") >= 1.0).await;
    assert_eq!(present(&proxy).await, places([&a]));
    lists.write(&list([&b]));
    await_places(&proxy, &places([&b])).await;
}

#[tokio::test]
async fn an_empty_list_is_meant() {
    let a = sim("a");
    let lists = Lists::with(&list([&a]));
    let proxy = lists.proxy(IN_TURN).await;
    await_places(&proxy, &places([&a])).await;
    lists.write("[]\n");
    await_places(&proxy, &[]).await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, error_code(&answer).as_str()), (503, "no_endpoint"));
    lists.write(&list([&a]));
    await_ready(&proxy).await;
    assert_eq!(chat().send(proxy.address()).await.by(), "a");
}

#[tokio::test]
async fn a_list_that_comes_after_the_proxy_takes_effect() {
    let a = sim("a");
    let lists = Lists::empty();
    let proxy = lists.proxy(IN_TURN).await;
    proxy.await_log("can not be looked up").await;
    let answer = chat().send(proxy.address()).await;
    assert_eq!((answer.status, error_code(&answer).as_str()), (503, "no_endpoint"));
    lists.write(&list([&a]));
    await_ready(&proxy).await;
    assert_eq!(chat().send(proxy.address()).await.by(), "a");
}

#[tokio::test]
async fn a_list_gives_weights_and_zones() {
    let (a, b, c) = (sim("a"), sim("b"), sim("c"));
    let lists = Lists::with(&format!(
        "- {{ address: '{}', weight: 3 }}\n- {{ address: '{}', zone: z1 }}\n- '{}'\n",
        a.addr, b.addr, c.addr
    ));
    let entries = format!("[{{ file: '{}', zone: z2 }}]", lists.path().display());
    let backend = format!("{IN_TURN}, locality: {{ zone: z1 }}");
    let proxy = Proxy::start(&one_backend_at(&entries, &backend, "")).await;
    await_places(&proxy, &places([&a, &b, &c])).await;
    let report = Load::of(20).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.by_name()["a"], 12, "{:?}", report.outcomes());
    let nearness = shown(&proxy, "nearness").await;
    assert_eq!(nearness, ["far", "near", "far"], "the zone of the entry is that of the rest");
}

#[tokio::test]
async fn a_changed_weight_takes_effect() {
    let (a, b) = (sim("a"), sim("b"));
    let text =
        |weight: u32| format!("- {{ address: '{}', weight: {weight} }}\n- '{}'\n", a.addr, b.addr);
    let lists = Lists::with(&text(1));
    let proxy = lists.proxy(IN_TURN).await;
    await_places(&proxy, &places([&a, &b])).await;
    lists.write(&text(4));
    await_weights(&proxy, &[4, 1]).await;
    let report = Load::of(20).run(proxy.address(), |_| chat()).await;
    assert_eq!(report.by_name()["a"], 16, "{:?}", report.outcomes());
}

#[tokio::test]
async fn names_in_a_list_are_looked_up_for_as_long_as_they_live() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let (a, port) = (sim("a"), fleet[0].addr.port());
    let dns = super::dns(Says::addresses(&["127.0.0.1"], 1)).await;
    let lists = Lists::with(&format!("- '{NAME}:{port}'\n- '{}'\n", a.addr));
    let proxy = Proxy::start(&config(&dns, &lists.entries(), IN_TURN)).await;
    await_places(&proxy, &places([&fleet[0], &a])).await;
    dns.set(NAME, Says::addresses(&["127.0.0.1", "127.0.0.2"], 1));
    await_places(&proxy, &places([&fleet[0], &fleet[1], &a])).await;
    dns.set(NAME, Says::Failure);
    proxy.await_metrics(|metrics| looked_up(metrics, "failure") >= 2.0).await;
    assert_eq!(present(&proxy).await, places([&fleet[0], &fleet[1], &a]));
}

#[tokio::test]
async fn a_name_in_a_list_that_nobody_knows_keeps_no_other_out() {
    let (a, b) = (sim("a"), sim("b"));
    let dns = DnsServer::start().await;
    let lists = Lists::with(&format!("- 'lost.test:{}'\n{}", a.addr.port(), list([&b])));
    let proxy = Proxy::start(&config(&dns, &lists.entries(), REFRESHED)).await;
    await_places(&proxy, &places([&b])).await;
    proxy.await_log("lost.test: there is no such name").await;
    dns.set("lost.test", Says::addresses(&["127.0.0.1"], 60));
    await_places(&proxy, &places([&a, &b])).await;
}

#[tokio::test]
async fn files_beside_a_list_cause_no_questions() {
    let fleet = same_port(&["127.0.0.1", "127.0.0.2"]);
    let port = fleet[0].addr.port();
    let dns = super::dns(Says::addresses(&["127.0.0.1"], 3600)).await;
    let text = format!("- '{NAME}:{port}'\n");
    let lists = Lists::with(&text);
    let proxy = Proxy::start(&config(&dns, &lists.entries(), IN_TURN)).await;
    await_places(&proxy, &places(&fleet[..1])).await;
    // For longer than changes take to settle, so that some of them are looked at.
    let other = lists.directory.path().join("notes.txt");
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    for n in 0..50 {
        pause.tick().await;
        std::fs::write(&other, n.to_string()).expect("a writable directory");
    }
    // The next real change makes question number two.
    lists.write(&format!("{text}- '{}'\n", fleet[1].addr));
    await_places(&proxy, &places(&fleet)).await;
    assert_eq!(dns.asked(NAME, RecordType::A).len(), 2);
}

#[tokio::test]
async fn an_endpoint_that_is_struck_off_ends_what_it_has() {
    let (a, b) = (sim("a"), sim("b"));
    let lists = Lists::with(&list([&a]));
    let proxy = lists.proxy(IN_TURN).await;
    await_places(&proxy, &places([&a])).await;
    let mut stream = Call::get("/events/60?gap=20").open(proxy.address()).await;
    assert!(stream.event().await.is_some());
    lists.replace(&list([&b]));
    await_places(&proxy, &places([&b])).await;
    assert_eq!(chat().send(proxy.address()).await.by(), "b");
    assert!(stream.events().await.is_complete());
    assert_eq!(a.state().aborted, 0);
}
