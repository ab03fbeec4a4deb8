//! The metrics endpoint: `GET /metrics` in Prometheus' text format, over HTTP/1.1.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::families::Family;

/// Connections served at the same time; more wait.
const CONNECTIONS: usize = 64;

/// How long a client may take to send its request: it has nothing to think about.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves what `families` gives, until the task is dropped.
pub async fn serve(listener: TcpListener, families: impl Fn() -> Vec<Family> + Send + Sync + 'static) {
    let families = Arc::new(families);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the metrics endpoint");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let families = Arc::clone(&families);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let families = Arc::clone(&families);
                async move { Ok::<_, Infallible>(answer(&request, families).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the metrics endpoint ended early");
            }
            drop(slot);
        });
    }
}

async fn answer(
    request: &Request<Incoming>,
    families: Arc<impl Fn() -> Vec<Family> + Send + Sync + 'static>,
) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    // Tables are read: not on a thread that serves the network.
    match tokio::task::spawn_blocking(move || text(&families())).await {
        Ok(text) => {
            let mut response = Response::new(Full::new(Bytes::from(text)));
            let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be read\n"),
    }
}

/// Prometheus' text format.
fn text(families: &[Family]) -> String {
    let mut text = String::new();
    for family in families {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {} {}", family.name, escaped(family.help, false));
        let _ = writeln!(text, "# TYPE {} {}", family.name, family.kind);
        for sample in &family.samples {
            let labels: Vec<_> = sample
                .labels
                .iter()
                .map(|(name, value)| format!("{name}=\"{}\"", escaped(value, true)))
                .collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(text, "{}{labels} {}", family.name, sample.value);
        }
    }
    text
}

fn escaped(text: &str, quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::super::families::Sample;
    use super::*;

    #[test]
    fn samples_are_written_with_escaped_labels() {
        let samples = vec![
            Sample::new(vec![("port", "a\"b\\c\n".to_owned()), ("reason", "x".to_owned())], 3),
            Sample::new(Vec::new(), 1 << 40),
        ];
        let family = Family { name: "ncm_x_total", help: "Counts\nx.", kind: "counter", samples };
        assert_eq!(
            text(&[family]),
            "# HELP ncm_x_total Counts\\nx.\n# TYPE ncm_x_total counter\n\
             ncm_x_total{port=\"a\\\"b\\\\c\\n\",reason=\"x\"} 3\nncm_x_total 1099511627776\n"
        );
    }
}
