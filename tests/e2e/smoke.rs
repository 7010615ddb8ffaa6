//! That the pieces the other modules stand on are there.

use outrigger_tests::harness::Raw;
use outrigger_tests::sim::{Echo, Options, Simulator};

#[tokio::test]
async fn simulator_answers_a_raw_client() {
    let simulator = Simulator::start(Options::named("stable").fast());
    let mut raw = Raw::connect(simulator.addr).await;
    raw.get("/echo?x=1").await;
    let response = raw.response().await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.header("server"), Some("outrigger-sim"));
    assert_eq!(response.json::<Echo>().target, "/echo?x=1");
}
