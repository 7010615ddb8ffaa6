//! What would happen to a described request: the answer to "why did it go there", without sending anything. What the
//! deadlines are that a running proxy has learned is asked of its admin page.

use std::fmt::Write;

use outrigger_config::{
    Config,
    units::format_rate,
    validated::{
        Action, Adaptive, Allowance, Answers, Arm, Bound, Deadline, FallbackReason, Hedge, Levels,
        Limit, Queue, Retry, Route, Sticky,
    },
};

use serde_json::Value;

use crate::{
    phase::route::{matches_head, matches_model},
    wire::RequestHead,
};

/// A request as far as routing looks at it.
pub struct Described {
    /// Its head.
    pub head: RequestHead,
    /// The `model` of its body.
    pub model: Option<String>,
}

/// Which route, arms, deadlines and policy `request` would meet, in lines for a terminal.
pub fn explain(config: &Config, request: &Described) -> String {
    let mut text = String::new();
    // Writing to a string can not fail.
    let _ = write_explanation(&mut text, config, request);
    text
}

/// The route that would take the request.
pub fn taken_by<'c>(config: &'c Config, request: &Described) -> Option<&'c Route> {
    config.routes.iter().find(|route| objection(route, request).is_none())
}

/// What the proxy with this `/endpoints` page has learned for the route, in lines for a terminal.
pub fn estimates(endpoints: &Value, route: &str) -> String {
    let mut text = String::new();
    for backend in endpoints.as_array().into_iter().flatten() {
        let arm = backend["backend"].as_str().unwrap_or("");
        let learned = backend["deadlines"].as_array().into_iter().flatten();
        for learned in learned.filter(|learned| learned["route"] == route) {
            let sizes = learned["first_byte"].as_array().into_iter().flatten();
            for size in sizes {
                let (answers, from) = (&size["answers"], &size["prompt_tokens_from"]);
                let what =
                    format!("first byte, {}, from {from} tokens", answers.as_str().unwrap_or(""));
                text.push_str(&estimate(arm, &what, size));
            }
            for what in ["gap", "connect"] {
                text.push_str(&estimate(arm, what, &learned[what]));
            }
        }
    }
    if text.is_empty() {
        text.push_str("  learned  nothing yet\n");
    }
    text
}

fn estimate(arm: &str, what: &str, known: &Value) -> String {
    let Some(deadline) = known["deadline_seconds"].as_f64() else { return String::new() };
    let [p50, p99] = ["p50_seconds", "p99_seconds"].map(|key| known[key].as_f64().unwrap_or(0.0));
    format!("  learned  {arm:<12} {what}: {deadline:.3} s (p50 {p50:.3} s, p99 {p99:.3} s)\n")
}

fn write_explanation(out: &mut String, config: &Config, request: &Described) -> std::fmt::Result {
    for route in &config.routes {
        match objection(route, request) {
            Some(why) => writeln!(out, "route {:<12} passed over: {why}", route.name)?,
            None => return write_route(out, config, route, request),
        }
    }
    writeln!(out, "no route takes it: 404")
}

/// Why the route does not take the request.
fn objection(route: &Route, request: &Described) -> Option<&'static str> {
    if !matches_head(&route.matches, &request.head) {
        return Some("host, path, method, headers or query differ");
    }
    if !matches_model(&route.matches, request.model.as_deref()) {
        return Some(match request.model {
            Some(_) => "the model differs",
            None => "it asks for a model and the request names none",
        });
    }
    None
}

fn write_route(
    out: &mut String,
    config: &Config,
    route: &Route,
    request: &Described,
) -> std::fmt::Result {
    writeln!(out, "route {:<12} takes it", route.name)?;
    match &route.action {
        Action::Redirect(redirect) => {
            writeln!(out, "  redirect {} to {}", redirect.status, redirect.to)
        }
        Action::Respond(respond) => writeln!(out, "  respond  {}", respond.status),
        Action::Split(arms) => {
            write_arms(out, config, arms)?;
            write_choice(out, route, request)?;
            if let Some(path) = route.rewritten_path(request.head.path()) {
                writeln!(out, "  rewrite  path {} -> {path}", request.head.path())?;
            }
            write_deadline(out, &route.deadline)?;
            write_levels(out, route.levels.as_ref())?;
            write_retry(out, route.retry.as_ref())?;
            write_hedge(out, route.hedge.as_ref())?;
            write_admission(out, config, route, arms, request)?;
            write_beside(out, route)
        }
    }
}

fn write_arms(out: &mut String, config: &Config, arms: &[Arm]) -> std::fmt::Result {
    let sum: u32 = arms.iter().map(|arm| arm.weight).sum();
    for arm in arms {
        let share = f64::from(arm.weight) * 100.0 / f64::from(sum.max(1));
        let backend = &config.backends[arm.backend];
        let endpoints: Vec<String> = backend.endpoints.iter().map(ToString::to_string).collect();
        let max = backend.max_connections.map_or("off".to_owned(), |max| max.to_string());
        writeln!(
            out,
            "  arm      {:<12} {share:5.1} %  {} over {}, max_connections {max}",
            arm.name,
            backend.balance.policy.name(),
            endpoints.join(", "),
        )?;
        if let Some(breaker) = &backend.breaker {
            let (share, attempts) = (breaker.failures * 100.0, breaker.attempts);
            let (window, base) = (breaker.window, breaker.base);
            writeln!(
                out,
                "  breaker  {:<12} opens for {base:?} when {share:.0} % of {attempts} or more attempts in {window:?} failed",
                arm.name,
            )?;
        }
    }
    Ok(())
}

fn write_choice(out: &mut String, route: &Route, request: &Described) -> std::fmt::Result {
    let header = route.force_arm.as_ref();
    let forced = header.and_then(|name| request.head.fields.get_str(name));
    match (&route.sticky, forced) {
        (_, Some(arm)) => writeln!(out, "  choice   forced by header to {arm}")?,
        (Some(Sticky::Header(name)), _) => writeln!(out, "  choice   sticky by header {name}")?,
        (Some(Sticky::Cookie(name)), _) => writeln!(out, "  choice   sticky by cookie {name}")?,
        (Some(Sticky::Body(name)), _) => writeln!(out, "  choice   sticky by body field {name}")?,
        (None, None) => writeln!(out, "  choice   in turn, by weight")?,
    }
    match header {
        Some(name) => writeln!(out, "  force    header {name} picks an arm"),
        None => writeln!(out, "  force    off"),
    }
}

/// What it has to pass before it is sent anywhere.
fn write_admission(
    out: &mut String,
    config: &Config,
    route: &Route,
    arms: &[Arm],
    request: &Described,
) -> std::fmt::Result {
    for rate in &route.rates {
        let allowed = [("requests", rate.requests), ("tokens", rate.tokens)];
        let allowed = allowed.into_iter().filter_map(|(what, allowance)| {
            let Allowance { rate, burst } = allowance?;
            let rate = format_rate(rate.count, rate.period);
            Some(format!("{rate} {what}, {burst} at once"))
        });
        let allowed: Vec<_> = allowed.collect();
        writeln!(out, "  rate     per {}: {}", rate.per.name(), allowed.join("; "))?;
    }
    write_gate(out, "the route", route.limit.as_ref(), route.queue.as_ref())?;
    for backend in arms.iter().map(|arm| &config.backends[arm.backend]) {
        let of = format!("backend {}", backend.name);
        write_gate(out, &of, backend.limit.as_ref(), backend.queue.as_ref())?;
    }
    if let Some(priority) = &route.priority {
        let class = priority.class(request.head.fields.get(&priority.header));
        let (name, all) = (&priority.classes[class], priority.classes.join(", "));
        writeln!(out, "  priority {name}, of {all} by header {}", priority.header)?;
    }
    Ok(())
}

fn write_gate(
    out: &mut String,
    of: &str,
    limit: Option<&Limit>,
    queue: Option<&Queue>,
) -> std::fmt::Result {
    match limit {
        None => {}
        Some(Limit::InFlight(most)) => writeln!(out, "  limit    {most} in flight, of {of}")?,
        Some(Limit::Adaptive(bounds)) => {
            let (min, max) = (bounds.min, bounds.max);
            writeln!(out, "  limit    adaptive from {min} to {max} in flight, of {of}")?;
        }
    }
    if let Some(Queue { size, wait, target }) = queue {
        writeln!(out, "  queue    {size} for {wait:?}, {target:?} when it stands, of {of}")?;
    }
    Ok(())
}

/// What happens beside the request and to its body.
fn write_beside(out: &mut String, route: &Route) -> std::fmt::Result {
    if let Some(guard) = &route.guard {
        let (arm, against) = (&guard.arm_name, &guard.against_name);
        writeln!(out, "  guard    {arm} against {against}")?;
    }
    if let Some(mirror) = &route.mirror {
        writeln!(out, "  mirror   {:.1} % to {}", mirror.share * 100.0, mirror.name)?;
    }
    if let Some(compress) = &route.compress {
        let codings: Vec<&str> = compress.algorithms.iter().map(|coding| coding.name()).collect();
        writeln!(out, "  compress {} from {} bytes", codings.join(", "), compress.min)?;
    }
    if let Some(decompress) = &route.decompress {
        writeln!(out, "  decompress up to {} bytes", decompress.max)?;
    }
    if let Some(batch) = &route.batch {
        writeln!(out, "  batch    up to {} within {:?}", batch.requests, batch.window)?;
    }
    route.answers.as_ref().map_or(Ok(()), |answers| write_answers(out, answers))
}

fn write_answers(out: &mut String, answers: &Answers) -> std::fmt::Result {
    let first = if answers.prefer { ", served first" } else { "" };
    let which = if answers.deterministic_only { "deterministic ones" } else { "all" };
    writeln!(out, "  answers  {which} stored, fresh for {:?}{first}", answers.ttl)?;
    let Some(fallback) = &answers.fallback else { return Ok(()) };
    let reasons: Vec<&str> = FallbackReason::ALL
        .into_iter()
        .filter(|reason| fallback.when.contains(*reason))
        .map(FallbackReason::name)
        .collect();
    let (stale, reasons) = (fallback.stale_for, reasons.join(", "));
    writeln!(out, "  fallback on answers up to {stale:?} stale, after {reasons}")
}

fn write_deadline(out: &mut String, deadline: &Deadline) -> std::fmt::Result {
    writeln!(
        out,
        "  deadline connect {}, first byte {}, gap {}, total {}",
        bound(&deadline.connect),
        bound(&deadline.first_byte),
        bound(&deadline.gap),
        deadline.total.map_or("off".to_owned(), |total| format!("{total:?}")),
    )
}

fn write_hedge(out: &mut String, hedge: Option<&Hedge>) -> std::fmt::Result {
    let Some(hedge) = hedge else { return writeln!(out, "  hedge    off") };
    let (after, max, share) = (hedge.after, hedge.max, hedge.budget * 100.0);
    writeln!(out, "  hedge    after {after}, {max} at most; {share:.1} % of the requests")
}

fn bound(bound: &Bound) -> String {
    match bound {
        Bound::Off => "off".to_owned(),
        Bound::Fixed(limit) => format!("{limit:?}"),
        Bound::Adaptive(Adaptive { strategy, floor, ceiling, .. }) => {
            format!("learned by {} within {floor:?} to {ceiling:?}", strategy.name())
        }
    }
}

fn write_levels(out: &mut String, levels: Option<&Levels>) -> std::fmt::Result {
    let Some(levels) = levels else { return Ok(()) };
    for level in &levels.table {
        write!(
            out,
            "  level    from {} {}: {}",
            level.from,
            levels.by.name(),
            level.action.name()
        )?;
        if let Some(first_byte) = level.first_byte {
            write!(out, ", first byte {first_byte:?}")?;
        }
        if let Some(total) = level.total {
            write!(out, ", total {total:?}")?;
        }
        if level.scale != 1.0 {
            write!(out, ", first byte and gap times {}", level.scale)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn write_retry(out: &mut String, retry: Option<&Retry>) -> std::fmt::Result {
    let Some(retry) = retry else { return writeln!(out, "  retry    off") };
    let reasons: Vec<&str> = outrigger_config::validated::RetryReason::ALL
        .into_iter()
        .filter(|reason| retry.when.contains(*reason))
        .map(outrigger_config::validated::RetryReason::name)
        .collect();
    writeln!(
        out,
        "  retry    {} attempts on {}; budget {} % and {} per second",
        retry.attempts,
        reasons.join(", "),
        retry.budget.percent,
        retry.budget.min_per_second,
    )
}
