//! Exchanges of a calling program, over HTTP/1 and HTTP/2.

use bytes::Bytes;
use h2::client::SendRequest;

use crate::peers::{Conversation, Message};

/// One HTTP/1 exchange. `line` is method and target.
pub(crate) async fn ask(client: &mut Conversation, line: &str, fields: &[(&str, &str)], body: Option<&[u8]>) -> Option<Message> {
    let mut head = format!("{line} HTTP/1.1\r\nhost: api\r\n");
    for (name, value) in fields {
        head.extend([name, ": ", value, "\r\n"]);
    }
    if let Some(body) = body {
        head.extend(["content-length: ", &body.len().to_string(), "\r\n"]);
    }
    client.say(&[head.as_bytes(), b"\r\n", body.unwrap_or_default()].concat()).await;
    client.answer().await
}

/// An answer over HTTP/2.
#[derive(Debug)]
pub(crate) struct Called {
    pub(crate) status: u16,
    /// Of gRPC.
    pub(crate) code: Option<u8>,
    /// It was nothing but a head.
    pub(crate) only: bool,
    pub(crate) head: http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Called {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.get(name).and_then(|value| value.to_str().ok())
    }
}

/// One HTTP/2 exchange with a message as its body, unless that is empty.
pub(crate) async fn call(
    send: &SendRequest<Bytes>,
    line: &str,
    fields: &[(&str, &str)],
    message: &[u8],
) -> Result<Called, h2::Error> {
    let (method, path) = line.split_once(' ').expect("method and path");
    let mut send = send.clone().ready().await?;
    let mut request = http::Request::builder().method(method).uri(format!("http://api{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(()).expect("a valid request");
    let (response, mut body) = send.send_request(request, message.is_empty())?;
    if !message.is_empty() {
        body.send_data(Bytes::copy_from_slice(message), true)?;
    }
    let (parts, mut stream) = response.await?.into_parts();
    let only = stream.is_end_stream();
    let mut body = Vec::new();
    while let Some(piece) = stream.data().await {
        let piece = piece?;
        stream.flow_control().release_capacity(piece.len())?;
        body.extend_from_slice(&piece);
    }
    let trailers = stream.trailers().await?.unwrap_or_default();
    let code = parts.headers.get("grpc-status").or(trailers.get("grpc-status"));
    let code = code.and_then(|v| v.to_str().ok()?.parse().ok());
    Ok(Called { status: parts.status.as_u16(), code, only, head: parts.headers, body })
}

/// One gRPC call.
pub(crate) async fn grpc_call(send: &SendRequest<Bytes>, id: u64, more: &[(&str, &str)]) -> Result<Called, h2::Error> {
    let id = id.to_string();
    let fields = [&[("content-type", "application/grpc"), ("te", "trailers"), ("x-id", &id)], more].concat();
    call(send, "POST /shop.Api/Get", &fields, &[0, 0, 0, 0, 1, 9]).await
}
