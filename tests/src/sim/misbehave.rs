//! What each fault does to a request.
//!
//! Faults strike after the request's body has been received. Those that end the connection never return: the order is
//! given, and the handler is dropped with its connection.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;

use super::body::{Break, Interrupted, SimBody, whole};
use super::context::Guard;
use super::fault::{Fault, Length};
use super::line::{Line, Order};
use super::openai;

const GARBAGE: &[u8] = b"\x16\x03\x01 this is not HTTP \xff\xfe\r\n\r\n\0\0";

/// Suffers the part of a fault that comes before the answer; gives the answer when the fault is one.
pub(crate) async fn before(
    fault: &Fault,
    line: &Line,
    guard: &mut Guard,
) -> Option<Response<SimBody>> {
    match fault {
        Fault::Reset => end(line, guard, Order::Reset).await,
        Fault::Close => end(line, guard, Order::Finish(Bytes::new())).await,
        Fault::Garbage => end(line, guard, Order::Finish(Bytes::from_static(GARBAGE))).await,
        Fault::WrongLength(length) => {
            end(line, guard, Order::Finish(wrong_length(*length).into())).await;
        }
        Fault::StallFirstByte(time) => {
            tokio::select! {
                () = stall(*time) => {}
                () = guard.released() => {}
            }
        }
        Fault::HealthStall => stall(None).await,
        Fault::SlowHealth(time) => stall(Some(*time)).await,
        Fault::Trickle(gap) => line.trickle(*gap),
        Fault::Status(code, retry_after) => return Some(status(*code, retry_after.as_deref())),
        Fault::NoHealth => return Some(status(500, None)),
        Fault::ResetMid(_) | Fault::CloseMid(_) | Fault::StallMid(..) | Fault::BadChunk(_) => {}
        Fault::Slow(_) | Fault::Refuse(_) => {}
    }
    None
}

/// Suffers the part of a fault that comes in the middle of the answer.
pub(crate) fn during(
    fault: &Fault,
    line: &Arc<Line>,
    guard: &mut Guard,
    response: Response<SimBody>,
) -> Response<SimBody> {
    let (after, how) = match fault {
        Fault::ResetMid(events) => (*events, Break::Reset),
        Fault::CloseMid(events) => (*events, Break::Close),
        Fault::BadChunk(events) => (*events, Break::BadChunk),
        Fault::StallMid(events, time) => (*events, Break::Stall(*time)),
        _ => return response,
    };
    if !matches!(how, Break::Stall(_)) {
        guard.faulted();
    }
    response.map(|body| Interrupted::new(body, Arc::clone(line), after, how).boxed_unsync())
}

async fn end(line: &Line, guard: &mut Guard, order: Order) {
    guard.faulted();
    line.end(order);
    pending::<()>().await;
}

async fn stall(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => pending().await,
    }
}

fn status(code: u16, retry_after: Option<&str>) -> Response<SimBody> {
    let Ok(status) = StatusCode::from_u16(code) else {
        return Response::new(whole(format!("there is no status {code}")));
    };
    let mut response = openai::error(status, "a simulated fault");
    if let Some(value) = retry_after.and_then(|text| HeaderValue::from_str(text).ok()) {
        response.headers_mut().insert(RETRY_AFTER, value);
    }
    response
}

fn wrong_length(length: Length) -> String {
    let body = r#"{"object":"outrigger-sim.fault","fault":"wrong_length"}"#;
    let said = match length {
        Length::Larger => body.len() + 64,
        Length::Smaller => body.len() - 16,
    };
    format!(
        "HTTP/1.1 200 OK\r\nserver: outrigger-sim\r\ncontent-type: application/json\r\ncontent-length: {said}\r\n\r\n{body}"
    )
}
