//! `signals.agent`: HAProxy's agent-check protocol, its words and everything that is none.

use std::time::Duration;

use outrigger_tests::harness::{Call, Load, Proxy};
use outrigger_tests::sim::{Options, Simulator};

use super::stub::{ELSEWHERE, Say, Stub, any_port, line};
use crate::fleet::{
    Endpoint, await_endpoints, await_ready, chat, endpoint_states, error_code, in_flight,
    one_backend, plain, reload, sim, stick,
};

/// Two endpoints at different addresses, each with an agent beside it.
struct Agents {
    a: Simulator,
    b: Simulator,
    of_a: Stub,
    of_b: Stub,
    backend: String,
    proxy: Proxy,
}

impl Agents {
    /// Both agents have said this and are obeyed.
    async fn saying(of_a: Say, of_b: Say) -> Self {
        Self::balancing("least_connection", of_a, of_b).await
    }

    async fn balancing(policy: &str, of_a: Say, of_b: Say) -> Self {
        let (of_a, of_b) = Stub::pair(false, of_a, of_b).await;
        let a = sim("a");
        let b = Simulator::start(Options::named("b").fast().listen(any_port(ELSEWHERE)));
        let port = of_a.address.port();
        let backend =
            format!("balance: {policy}, signals: {{ agent: {{ port: {port}, interval: 200ms }} }}");
        let proxy = Proxy::start(&one_backend(&[&a, &b], &backend, "")).await;
        let agents = Self { a, b, of_a, of_b, backend, proxy };
        agents.obeyed().await;
        agents
    }

    /// What the agents say now has been heard: two more questions mean that the first was answered.
    async fn obeyed(&self) {
        self.of_a.asked_again(2).await;
        self.of_b.asked_again(2).await;
    }

    async fn says(&self, say: Say) {
        self.of_a.say(say);
        self.obeyed().await;
    }

    /// Where `count` requests go that all stay where they are.
    async fn stick(&self, count: usize) -> (Vec<u64>, impl Sized) {
        let held = stick(&self.proxy, &[&self.a, &self.b], (0..count).map(|_| plain())).await;
        (in_flight(&self.proxy).await, held)
    }

    async fn ready(&self) -> [bool; 2] {
        let states = endpoint_states(&self.proxy).await;
        [states[0].ready, states[1].ready]
    }

    async fn checks(&self, result: &str) -> f64 {
        let address = self.a.endpoint();
        let labels = [("endpoint", &*address), ("result", result)];
        self.proxy.metrics().await.get("outrigger_agent_checks_total", &labels)
    }

    fn yaml(&self, backend: &str) -> String {
        one_backend(&[&self.a, &self.b], backend, "")
    }
}

fn silent() -> Say {
    line("up")
}

#[tokio::test]
async fn a_share_of_the_weight_is_a_share_of_the_work() {
    let agents = Agents::saying(line("up 50%"), silent()).await;
    let (held, first) = agents.stick(6).await;
    assert_eq!(held, [2, 4]);
    drop(first);
    crate::fleet::await_idle(&agents.proxy).await;
    agents.says(line("weight:3")).await;
    let (held, _then) = agents.stick(8).await;
    assert_eq!(held, [6, 2]);
    assert!(agents.checks("success").await >= 2.0);
    assert_eq!(agents.checks("failure").await, 0.0);
}

#[tokio::test]
async fn in_turn_a_weight_is_a_share_of_the_turns() {
    for (word, share) in [("50%", 1.0 / 3.0), ("300%", 3.0 / 4.0)] {
        let agents = Agents::balancing("round_robin", line(word), silent()).await;
        let report = Load::of(400).at_once(4).run(agents.proxy.address(), |_| chat()).await;
        assert_eq!(report.ok(), 400, "{:?}", report.outcomes());
        let got = report.by_name()["a"] as f64 / 400.0;
        assert!((share - 0.08..=share + 0.08).contains(&got), "{word}: {got} instead of {share}");
    }
}

#[tokio::test]
async fn an_agent_that_says_nothing_of_the_weight_leaves_it_as_it_is() {
    let agents = Agents::saying(line("weight:300%"), silent()).await;
    agents.says(line("up")).await;
    let (held, _stuck) = agents.stick(8).await;
    assert_eq!(held, [6, 2]);
}

#[tokio::test]
async fn an_endpoint_of_no_weight_gets_nothing_new() {
    for policy in ["least_load", "least_connection", "round_robin", "power_of_two", "prequal"] {
        let agents = Agents::balancing(policy, line("0%"), silent()).await;
        let report = Load::of(20).at_once(2).run(agents.proxy.address(), |_| chat()).await;
        assert_eq!((report.ok(), report.by_name()["b"]), (20, 20), "{:?}", report.outcomes());
        assert_eq!(agents.ready().await, [true, true]);
    }
}

#[tokio::test]
async fn drain_lets_go_on_what_is_there_and_lets_nothing_in() {
    let agents = Agents::saying(silent(), line("down")).await;
    let stream = Call::get("/events/40?gap=20").open(agents.proxy.address()).await;
    assert_eq!(agents.a.state().in_flight, 1);
    agents.of_b.say(line("up"));
    agents.says(line("drain")).await;
    let known = |all: &[Endpoint]| !all[0].ready && all[1].ready;
    await_endpoints(&agents.proxy, "the words to be heard", known).await;
    let report = Load::of(10).run(agents.proxy.address(), |_| chat()).await;
    assert_eq!((report.ok(), report.by_name()["b"]), (10, 10), "{:?}", report.outcomes());
    assert!(stream.events().await.is_complete(), "what was there goes on");
    // It works all the while; that does not undo the drain.
    agents.says(line("up 100%")).await;
    assert_eq!(agents.ready().await, [false, true]);
    agents.says(line("ready")).await;
    assert_eq!(agents.ready().await, [true, true]);
}

#[tokio::test]
async fn down_is_down_until_the_agent_says_up() {
    for word in ["down # out of memory", "fail", "stopped", "DOWN,0%"] {
        let agents = Agents::saying(line(word), silent()).await;
        assert_eq!(agents.ready().await, [false, true], "{word}");
        agents.says(line("ready 100%")).await;
        assert_eq!(agents.ready().await, [false, true], "it takes requests but does not work");
        agents.says(line("ready up 100%")).await;
        assert_eq!(agents.ready().await, [true, true]);
        let (held, _stuck) = agents.stick(2).await;
        assert_eq!(held, [1, 1]);
    }
}

#[tokio::test]
async fn when_all_are_drained_the_proxy_is_not_ready() {
    let agents = Agents::saying(line("drain"), line("maint")).await;
    let page = agents.proxy.admin_get("/ready").await;
    assert_eq!(page.status, 503, "{}", page.text());
    let answer = chat().send(agents.proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (503, "no_endpoint"));
    agents.says(line("ready")).await;
    await_ready(&agents.proxy).await;
    assert_eq!(chat().send(agents.proxy.address()).await.by(), "a");
}

#[tokio::test]
async fn maxconn_bounds_what_is_in_flight() {
    let agents = Agents::saying(line("maxconn:1"), line("maxconn:2")).await;
    let (held, _stuck) = agents.stick(3).await;
    assert_eq!(held, [1, 2]);
    let answer = chat().send(agents.proxy.address()).await;
    assert_eq!((answer.status, &*error_code(&answer)), (503, "overloaded"));
    agents.says(line("maxconn:0")).await;
    let (held, _more) = agents.stick(2).await;
    assert_eq!(held, [3, 2], "0 is no limit");
}

/// What an agent says that is no word changes nothing and is complained of once.
async fn ignored(say: Say, counted: &str) {
    let agents = Agents::saying(line("maxconn:1 50%"), silent()).await;
    let before = agents.checks(counted).await;
    agents.says(say).await;
    agents.obeyed().await;
    assert!(agents.checks(counted).await > before, "{counted}");
    assert_eq!(agents.ready().await, [true, true]);
    let (held, _stuck) = agents.stick(4).await;
    assert_eq!(held, [1, 3], "what it said before stands");
    let log = agents.proxy.log();
    let address = agents.a.endpoint();
    let mut told =
        log.iter().filter(|l| l.contains("no word of the agent") && l.contains(&address));
    let last = told.next_back().expect("a complaint");
    let reason = last.split("reason=").last().expect("a reason");
    assert!(!told.any(|line| line.ends_with(reason)), "said once: {log:#?}");
    let report = Load::of(10).run(agents.proxy.address(), |_| chat()).await;
    assert_eq!(report.ok(), 10, "{:?}", report.outcomes());
}

#[tokio::test]
async fn words_that_mean_nothing_are_ignored() {
    ignored(line("drain please"), "failure").await;
}

#[tokio::test]
async fn bytes_that_are_no_text_are_ignored() {
    ignored(Say::This(vec![0xff, 0x00, 0xc3, b'\n']), "failure").await;
}

#[tokio::test]
async fn a_line_without_an_end_is_ignored() {
    ignored(Say::This(b"drain".to_vec()), "failure").await;
}

#[tokio::test]
async fn a_line_that_is_too_long_is_ignored() {
    ignored(Say::This([b"drain ".repeat(1_000), b"\n".to_vec()].concat()), "failure").await;
}

#[tokio::test]
async fn an_agent_that_talks_for_ever_is_ignored() {
    ignored(Say::AndOn(b"drain ".to_vec(), b"drain ".repeat(1_000)), "failure").await;
}

#[tokio::test]
async fn an_agent_that_says_nothing_is_ignored() {
    ignored(Say::AndHold(Vec::new()), "failure").await;
}

#[tokio::test]
async fn an_agent_that_hangs_up_is_ignored() {
    ignored(Say::This(Vec::new()), "failure").await;
}

#[tokio::test]
async fn an_agent_that_does_not_close_has_said_its_line_all_the_same() {
    let agents = Agents::saying(silent(), silent()).await;
    agents.says(Say::AndHold(b"drain\n".to_vec())).await;
    agents.obeyed().await;
    assert_eq!(agents.ready().await, [false, true]);
}

#[tokio::test]
async fn only_the_first_line_counts() {
    let agents = Agents::saying(silent(), silent()).await;
    agents.says(Say::This(b"maxconn:1\r\ndrain\r\n".to_vec())).await;
    let (held, _stuck) = agents.stick(4).await;
    assert_eq!(held, [1, 3]);
}

#[tokio::test]
async fn the_word_of_an_agent_that_is_gone_stands() {
    let Agents { a, b, of_a, of_b, proxy, .. } = Agents::saying(line("drain"), silent()).await;
    drop(of_a);
    proxy.await_log("no word of the agent").await;
    of_b.asked_again(4).await;
    assert!(!endpoint_states(&proxy).await[0].ready);
    let report = Load::of(10).run(proxy.address(), |_| chat()).await;
    assert_eq!((report.ok(), report.by_name()["b"]), (10, 10), "{:?}", report.outcomes());
    assert_eq!((a.state().requests(), b.state().requests()), (0, 10));
}

#[tokio::test]
async fn an_endpoint_whose_agent_was_never_there_serves() {
    let gone = Stub::agent(any_port(std::net::Ipv4Addr::LOCALHOST), silent()).await;
    let port = gone.address.port();
    drop(gone);
    let one = sim("one");
    let backend = format!("signals: {{ agent: {{ port: {port}, interval: 20ms }} }}");
    let proxy = Proxy::start(&one_backend(&[&one], &backend, "")).await;
    proxy.await_log("no word of the agent").await;
    assert_eq!(chat().send(proxy.address()).await.status, 200);
}

#[tokio::test]
async fn without_agents_nobody_obeys_one_any_more() {
    let agents = Agents::saying(line("drain 10% maxconn:1"), silent()).await;
    assert_eq!(agents.ready().await, [false, true]);
    reload(&agents.proxy, &agents.yaml("balance: least_connection")).await;
    assert_eq!(agents.ready().await, [true, true], "nobody could ever take it back");
    let (held, _stuck) = agents.stick(6).await;
    assert_eq!(held, [3, 3]);
}

#[tokio::test]
async fn a_reload_does_not_forget_what_agents_said() {
    let agents = Agents::saying(line("drain"), silent()).await;
    agents.says(line("up")).await;
    assert_eq!(agents.ready().await, [false, true]);
    let other = format!("{}, idle_connections: 7", agents.backend);
    reload(&agents.proxy, &agents.yaml(&other)).await;
    agents.obeyed().await;
    assert_eq!(agents.ready().await, [false, true], "it never said `ready`");
}

#[tokio::test]
async fn a_slow_agent_delays_no_other() {
    let agents = Agents::saying(Say::AndHold(Vec::new()), silent()).await;
    agents.of_b.say(line("drain"));
    agents.of_b.asked_again(2).await;
    assert_eq!(agents.ready().await, [true, false]);
    assert!(agents.checks("failure").await >= 1.0);
    // Nor does it hold up the end of the proxy.
    agents.proxy.signal(nix::sys::signal::Signal::SIGINT);
    agents.proxy.wait_exit(Duration::from_secs(10)).await;
}
