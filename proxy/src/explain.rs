//! What would happen to a described request: the answer to "why did it go there", without sending anything.

use std::fmt::Write;

use outrigger_config::{
    Config,
    units::format_rate,
    validated::{Action, Allowance, Arm, Deadline, Limit, Queue, Retry, Route, Sticky},
};

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
            write_retry(out, route.retry.as_ref())?;
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
        write!(out, "  rate     per {}:", rate.per.name())?;
        for (what, allowance) in [("requests", rate.requests), ("tokens", rate.tokens)] {
            if let Some(Allowance { rate, burst }) = allowance {
                let rate = format_rate(rate.count, rate.period);
                write!(out, " {rate} {what}, {burst} at once;")?;
            }
        }
        writeln!(out)?;
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
    Ok(())
}

fn write_deadline(out: &mut String, deadline: &Deadline) -> std::fmt::Result {
    let text =
        |limit: Option<std::time::Duration>| limit.map_or("off".to_owned(), |d| format!("{d:?}"));
    writeln!(
        out,
        "  deadline connect {}, first byte {}, gap {}, total {}",
        text(deadline.connect),
        text(deadline.first_byte),
        text(deadline.gap),
        text(deadline.total),
    )
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
