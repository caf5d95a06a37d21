//! `weft dashboard`: brings the control plane's page to a browser on this machine. The control plane serves it on its operator socket alone; here is a listener on
//! loopback that passes it on to who has the token.

use std::convert::Infallible;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, SET_COOKIE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use crate::fleet::Fleet;
use crate::operator::{Meant, Operator, Way};
use crate::output::print;
use crate::rundir;

mod gate;

use gate::{Asked, Gate, SAID};

/// Connections at once: a browser takes six.
const MOST: usize = 32;
/// How long a connection may last; a browser makes another.
const LONGEST: Duration = Duration::from_secs(600);

/// What `weft dashboard` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
The page shows who calls whom with what traffic and whether on mutual TLS, how well services do, what was refused and why, and the certificates and versions of \
the sidecars. It changes nothing. While it is open, sidecars tell the control plane of their traffic; when nobody looks, they tell nothing.

It comes from the control plane's operator socket: of a mesh on this machine directly; of a cluster by kubectl exec, and so for those who may do that in weft's \
namespace. The address that is printed is good once, in one browser; the page is gone when this command ends.

Examples:
  weft dashboard
  weft dashboard --no-open
  weft dashboard --context kind-shop")]
pub(crate) struct DashboardArgs {
    /// Only print the address
    #[arg(long)]
    no_open: bool,

    #[command(flatten)]
    meant: Meant,

    #[arg(
        long,
        value_name = "NAME",
        conflicts_with = "socket",
        help = "Context of the kubeconfig: a mesh on that cluster is meant"
    )]
    context: Option<String>,
}

pub(crate) fn main(args: &DashboardArgs) -> anyhow::Result<ExitCode> {
    let way = match args.meant.named() {
        Some(socket) => Way::Socket(socket.to_owned()),
        None => match Fleet::find(&args.meant.which, args.context.as_deref())? {
            Fleet::Run(run) => Way::Socket(run.join(rundir::OPERATOR_SOCKET)),
            Fleet::Cluster(context) => Way::exec(context.as_deref())?,
        },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime can be made")?;
    runtime.block_on(serve(way, !args.no_open))?;
    Ok(ExitCode::SUCCESS)
}

/// Serves until a signal comes.
async fn serve(way: Way, open: bool) -> anyhow::Result<()> {
    let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let operator = Operator::by(way).await?;
    // That it can be asked is known before anybody looks.
    let page = operator.clone().dashboard("/").await?;
    anyhow::ensure!(page.status == 200, "the control plane has no dashboard: it answers {}", page.status);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port of loopback can be taken")?;
    let gate = Arc::new(Gate::new(listener.local_addr()?.port(), secret(), secret()));
    print(&format!("{}\n", gate.address()))?;
    let opened = if open { Opened::begin(&gate.address()) } else { None };
    if opened.is_none() {
        crate::complain("open that address in a browser of this machine; Ctrl-C ends it");
    }
    let room = Arc::new(Semaphore::new(MOST));
    let ended = async {
        let [interrupt, terminate, hangup] = &mut signals;
        let (Ok(interrupt), Ok(terminate), Ok(hangup)) = (interrupt, terminate, hangup) else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    tokio::pin!(ended);
    loop {
        let (stream, _) = tokio::select! {
            () = &mut ended => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        // Who finds no room is not waited for: the browser comes again.
        let Ok(place) = room.clone().try_acquire_owned() else { continue };
        let (gate, operator) = (gate.clone(), operator.clone());
        tokio::spawn(async move {
            let _ = tokio::time::timeout(LONGEST, connection(stream, gate, operator)).await;
            drop(place);
        });
    }
    drop(opened);
    Ok(())
}

/// 256 bits.
fn secret() -> String {
    (0..4).map(|_| format!("{:016x}", weft_control_plane::server::random())).collect()
}

async fn connection(stream: TcpStream, gate: Arc<Gate>, operator: Operator) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (gate, operator) = (gate.clone(), operator.clone());
        async move { Ok::<_, Infallible>(dressed(answer(&request, &gate, operator).await)) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30))
        .max_buf_size(32 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let _ = serving.await;
}

async fn answer(request: &Request<Incoming>, gate: &Gate, mut operator: Operator) -> Response<Full<Bytes>> {
    match gate.judge(request.method(), request.uri(), request.headers()) {
        Asked::Refused(status, why) => text(status, "text/plain; charset=utf-8", why.into()),
        Asked::Opened { cookie } => {
            // By the page itself, and not by a redirect: a cookie for its own site alone would not be sent after one that another site began.
            let page = "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=\"0; url=/\"><link rel=icon href=\"/icon.svg\"><title>weft</title><a href=\"/\">weft</a>\n";
            let mut response = text(StatusCode::OK, "text/html; charset=utf-8", page.into());
            if let Ok(value) = HeaderValue::from_str(&cookie) {
                response.headers_mut().insert(SET_COOKIE, value);
            }
            response
        }
        Asked::Page(path) => match operator.dashboard(&path).await {
            Ok(page) => {
                let status = u16::try_from(page.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
                text(status.unwrap_or(StatusCode::BAD_GATEWAY), &page.content_type, page.body)
            }
            Err(why) => text(StatusCode::BAD_GATEWAY, "text/plain; charset=utf-8", format!("{why:#}\n").into()),
        },
    }
}

fn text(status: StatusCode, kind: &str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_str(kind).unwrap_or(HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn dressed(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    for (name, value) in SAID {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// A file that leads to the address, for who opens it: the words of a command line are seen by every user of the machine. It is removed when this is dropped.
struct Opened(PathBuf);

impl Opened {
    /// None where nothing opens pages here.
    fn begin(address: &str) -> Option<Self> {
        let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let file = Self(base.join(format!("weft-dashboard-{}.html", secret())));
        let page = format!(
            "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=\"0; url={address}\"><title>weft</title>\n"
        );
        let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file.0).ok()?;
        out.write_all(page.as_bytes()).ok()?;
        let mut command = Command::new("xdg-open");
        command.arg(&file.0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        // It may stay for as long as the browser.
        std::thread::spawn(move || child.wait());
        Some(file)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
