//! Running the proxy, with a shell script in its place.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use outrigger_tests::harness::{Launch, Proxy};
use tempfile::TempDir;

/// Writes its ports file late, tells what it was started with, and ends with 7 when it is asked to.
const STAND_IN: &str = r#"#!/bin/sh
trap 'echo "{\"outcome\":\"ok\",\"method\":\"GET\"}"; echo draining >&2; exit 7' TERM
echo "started with $* and COLOUR=$COLOUR"
test "$4" = --config && cat "$5" && echo
sleep 0.1
echo '{"listeners":["127.0.0.1:1","127.0.0.1:2"],"admin":"127.0.0.1:3","pid":'$$'}' > "$3.new"
mv "$3.new" "$3"
while :; do sleep 0.02; done
"#;

/// An executable file; gone with its directory.
fn program(text: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("program");
    std::fs::write(&path, text).expect("it is writable");
    let executable = PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, executable).expect("it is ours");
    (directory, path)
}

async fn stand_in(launch: Launch) -> Proxy {
    let (_directory, path) = program(STAND_IN);
    launch.binary(&path).start().await
}

#[tokio::test]
async fn a_proxy_is_started_signalled_and_waited_for() {
    let proxy = stand_in(Launch::new("routes: []").env("COLOUR", "red").arg("--more")).await;
    assert_eq!(proxy.address().port(), 1);
    assert_eq!((proxy.addresses().len(), proxy.admin().port()), (2, 3));
    assert_eq!(proxy.pid(), proxy.process().pid());
    assert!(proxy.await_log("started with").await.ends_with("--more and COLOUR=red"));
    proxy.signal(Signal::SIGTERM);
    proxy.await_log("draining").await;
    assert_eq!(proxy.await_access(1).await[0]["method"], "GET");
    assert_eq!(proxy.wait_exit(Duration::from_secs(10)).await.code(), Some(7));
    assert!(!proxy.is_running());
}

#[tokio::test]
async fn what_would_collide_is_filled_in() {
    let proxy = stand_in(Launch::new("admin: { address: 127.0.0.1:0 }\nroutes: []")).await;
    let config = std::fs::read_to_string(proxy.config_file()).expect("a configuration");
    assert_eq!(config.matches("address: 127.0.0.1:0").count(), 2, "{config}");
    assert!(config.contains("upgrade_socket") && config.ends_with("routes: []"));
}

#[tokio::test]
async fn a_configuration_is_replaced_in_both_ways() {
    let proxy = stand_in(Launch::new("first: 1").as_configmap()).await;
    let read = || std::fs::read_to_string(proxy.config_file()).expect("a configuration");
    assert!(read().ends_with("first: 1"));
    for (number, swap) in [(2, true), (3, true), (4, false), (5, true)] {
        let text = format!("number: {number}");
        match swap {
            true => proxy.rewrite_config_as_configmap(&text),
            false => proxy.rewrite_config(&text),
        }
        assert!(read().ends_with(&text));
        let linked = std::fs::read_link(proxy.config_file()).is_ok();
        assert_eq!(linked, swap);
    }
}

#[tokio::test]
async fn a_successor_has_the_same_configuration_and_its_own_ports_file() {
    let first = stand_in(Launch::new("routes: []")).await;
    let second = stand_in(Launch::successor_of(&first)).await;
    let line = second.await_log("started with").await;
    assert!(line.contains(" --upgrade ") && line.contains("successor-ports.json"), "{line}");
    assert_eq!(first.config_file(), second.config_file());
    drop(first);
    assert!(second.config_file().is_file(), "the directory lives as long as one of them");
}

#[tokio::test]
#[should_panic(expected = "no such thing")]
async fn a_proxy_that_gives_up_fails_the_test_with_its_last_words() {
    let (_directory, path) = program("#!/bin/sh\necho no such thing >&2\nexit 1\n");
    Launch::new("routes: []").binary(&path).start().await;
}

#[tokio::test]
async fn a_launch_that_should_fail_tells_status_and_words() {
    let (_directory, path) = program("#!/bin/sh\necho no such thing >&2\nexit 2\n");
    let (status, log) = Launch::upstream("http://127.0.0.1:9").binary(&path).fails().await;
    assert_eq!((status.code(), log), (Some(2), vec!["no such thing".to_owned()]));
}
