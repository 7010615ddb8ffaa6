//! `/ws`: echoes every WebSocket message.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::body::{SimBody, whole};
use super::context::{Context, Guard};
use super::openai;

/// Answers the handshake and echoes until the client closes. The request counts as in flight until then.
pub(crate) fn accept<B>(
    context: &Arc<Context>,
    guard: &mut Option<Guard>,
    mut request: Request<B>,
) -> Response<SimBody> {
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY).cloned() else {
        return openai::error(StatusCode::BAD_REQUEST, "not a WebSocket handshake");
    };
    let protocol = request.headers().get(SEC_WEBSOCKET_PROTOCOL).cloned();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(echo(Arc::clone(context), guard.take(), upgrade));
    switch(&key, protocol)
}

fn switch(key: &HeaderValue, protocol: Option<HeaderValue>) -> Response<SimBody> {
    let mut response = Response::new(whole(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(derive_accept_key(key.as_bytes())) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(protocol) = protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    response
}

async fn echo(context: Arc<Context>, guard: Option<Guard>, upgrade: OnUpgrade) {
    let mut hang_ups = context.hang_ups();
    let Ok(upgraded) = upgrade.await else { return };
    let io = TokioIo::new(upgraded);
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    tokio::select! {
        () = exchange(socket, guard) => {}
        _ = hang_ups.changed() => {}
    }
}

async fn exchange(mut socket: WebSocketStream<TokioIo<Upgraded>>, mut guard: Option<Guard>) {
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close()
            && let Some(guard) = &mut guard
        {
            guard.completed();
        }
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}
