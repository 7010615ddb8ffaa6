//! `/sim/*`: reading and steering a simulator from outside its process.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::body::SimBody;
use super::context::{Context, lock};
use super::fault::{Rule, RuleText};
use super::openai::{error, json_value};

/// Answers a control request. These are neither counted nor subject to faults.
pub(crate) async fn answer(
    context: &Arc<Context>,
    parts: &Parts,
    body: Incoming,
) -> Response<SimBody> {
    let Ok(body) = body.collect().await else {
        return error(StatusCode::BAD_REQUEST, "the body broke off");
    };
    match act(context, &parts.method, parts.uri.path(), &body.to_bytes()) {
        Ok(value) => json_value(StatusCode::OK, &value),
        Err((status, problem)) => error(status, &problem),
    }
}

fn act(
    context: &Arc<Context>,
    method: &Method,
    path: &str,
    body: &Bytes,
) -> Result<Value, (StatusCode, String)> {
    match (method.as_str(), path) {
        ("GET", "/sim/state") => Ok(json!(context.state())),
        ("GET", "/sim/seen") => Ok(json!(context.seen())),
        ("GET", "/sim/faults") => Ok(rules(context)),
        ("POST", "/sim/faults") => {
            context.inflict(rule(body)?);
            Ok(rules(context))
        }
        ("DELETE", "/sim/faults") => {
            lock(&context.faults).clear();
            context.listen(true);
            Ok(rules(context))
        }
        ("POST", "/sim/resume") => {
            context.listen(true);
            Ok(json!({}))
        }
        ("POST", "/sim/hang-up") => {
            context.hang_up();
            Ok(json!({}))
        }
        ("POST", "/sim/slowdown") => {
            context.pace.set_slowdown(factor(body)?);
            Ok(json!({}))
        }
        _ => Err((StatusCode::NOT_FOUND, format!("there is no {method} {path}"))),
    }
}

fn rules(context: &Context) -> Value {
    let book = lock(&context.faults);
    json!(book.rules().iter().map(RuleText::from).collect::<Vec<_>>())
}

fn rule(body: &Bytes) -> Result<Rule, (StatusCode, String)> {
    let text: RuleText = serde_json::from_slice(body).map_err(|e| bad(e.to_string()))?;
    Rule::try_from(text).map_err(bad)
}

fn factor(body: &Bytes) -> Result<f64, (StatusCode, String)> {
    let factor = serde_json::from_slice(body).ok();
    let positive = factor.filter(|factor: &f64| factor.is_finite() && *factor > 0.0);
    positive.ok_or_else(|| bad("the body must be a number above 0".to_owned()))
}

fn bad(problem: String) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, problem)
}
