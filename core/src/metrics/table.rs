//! Every metric of weft's programs, and every label. `docs/metrics.md` is made of this file.
//!
//! Names are those of OpenTelemetry's semantic conventions where these have one (`conventions::SCHEMA_URL`: `http`, `rpc`, `network`, `tls`, `error`, `otel`), else begin with
//! `weft`. Prometheus' spelling follows by rule (`prometheus.rs`).

use Kind::{Counter, Gauge, Histogram, Info, UpDownCounter};
use Program::{Cni, ControlPlane, Injector, Sidecar};

/// Which program tells a metric.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Program {
    /// `weft-sidecar`.
    Sidecar,
    /// `weft-control-plane`.
    ControlPlane,
    /// `weft-injector`.
    Injector,
    /// `weft-cni-agent`.
    Cni,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 4] = [Sidecar, ControlPlane, Injector, Cni];

    /// As people call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Sidecar => "sidecar",
            ControlPlane => "control plane",
            Injector => "injector",
            Cni => "CNI agent",
        }
    }
}

/// What kind of a metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down, and sums over instances mean something.
    UpDownCounter,
    /// It goes up and down.
    Gauge,
    /// How values spread.
    Histogram,
    /// Facts about the program, as labels of a series that is always 1. In OTLP they are the resource.
    Info,
}

impl Kind {
    /// Whether Prometheus takes it for a gauge.
    pub const fn is_gauge(self) -> bool {
        matches!(self, UpDownCounter | Gauge | Info)
    }

    /// As OpenTelemetry calls the instrument.
    pub const fn as_str(self) -> &'static str {
        match self {
            Counter => "counter",
            UpDownCounter => "updowncounter",
            Gauge => "gauge",
            Histogram => "histogram",
            Info => "info",
        }
    }
}

/// One metric.
#[derive(PartialEq, Debug)]
pub struct Metric {
    /// Its name in OpenTelemetry.
    pub name: &'static str,
    /// What kind it is.
    pub kind: Kind,
    /// Its unit (UCUM): `s`, `By`, `1`, or what is counted in braces.
    pub unit: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// The labels that its series may have, by their attribute names.
    pub labels: &'static [&'static str],
    /// Who tells it.
    pub programs: &'static [Program],
}

macro_rules! metrics {
    ($($id:ident $name:literal $kind:ident $unit:literal [$($program:ident)*] [$($label:expr),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Metric = Metric {
                name: $name, kind: $kind, unit: $unit, help: $help, labels: &[$($label),*], programs: &[$($program),*],
            };
        )*

        /// Every metric, in the order in which they are told.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

macro_rules! labels {
    ($($id:ident $name:literal $help:literal;)*) => {
        $(#[doc = $help] pub const $id: &str = $name;)*

        /// Every label, with what it says.
        pub static LABELS: &[(&str, &str)] = &[$(($name, $help)),*];
    };
}

labels! {
    NAMESPACE "weft.namespace" "The sidecar's own namespace. Every series of a sidecar has it.";
    WORKLOAD "weft.workload" "The sidecar's own workload: its service account. Every series of a sidecar has it.";
    DIRECTION "weft.direction" "`inbound`: others call the pod; `outbound`: the pod calls.";
    PEER "weft.peer" "The other end: the SPIFFE ID that it proved, `plaintext`, or `none` where nobody was reached.";
    SERVICE "weft.service" "What was called, as NAMESPACE/NAME: a service, a workload that was dialled by its own address, an external service; `unknown` outside of the mesh. Outbound only.";
    ROUTE "weft.route" "The route that the request fell under, as KIND NAMESPACE/NAME; none where the service has no routes.";
    MTLS "weft.mtls" "`true` on mutual TLS of the mesh, `false` in the clear.";
    VERDICT "weft.verdict" "What was decided: `allowed` or `denied`; of admission reviews `injected`, `skipped` or `refused`.";
    REASON "weft.reason" "Why, in a word.";
    POLICY "weft.policy.name" "The policy that decided, as NAMESPACE/NAME; `none` where the default did, `other` beyond 500 of them.";
    RULE "weft.policy.rule" "The place of the rule that decided, from 0.";
    NOTICE "weft.policy.notice" "`audit`: an AUDIT policy matches; `would-deny`, `would-allow`: policies in dry run would treat the call otherwise.";
    TLS_ROLE "weft.tls.role" "`client` or `server` of the handshake.";
    OUTCOME "weft.outcome" "What came out of it.";
    STATE "weft.state" "Which state.";
    PORT_NAME "weft.port.name" "Which of the program's own ports.";
    TASK "weft.cni.task" "What the plugin asked for: `add` or `check`.";
    ACTION "weft.cni.action" "What was done about it: `deleted` or `told`.";
    URL "url.full" "The URL that keys are fetched from.";
    METHOD "http.request.method" "The method; `_OTHER` for one that is neither QUERY nor in RFC 9110 and RFC 5789.";
    STATUS "http.response.status_code" "The final status; none where the answer never came.";
    GRPC_STATUS "rpc.response.status_code" "gRPC's status, by its name (`OK`, `UNAVAILABLE` …); of an answer without one, what the HTTP status stands for.";
    RPC_SYSTEM "rpc.system.name" "Always `grpc`.";
    ERROR "error.type" "None where all went well. Else weft's reason, or the status as a text: of 5xx, and outbound of 4xx as well; of gRPC its status by name. `http.…` has it for gRPC where it is the server's fault (`UNKNOWN`, `DEADLINE_EXCEEDED`, `UNIMPLEMENTED`, `INTERNAL`, `UNAVAILABLE`, `DATA_LOSS`), whatever the HTTP status; `rpc.client…` for all but OK.";
    PROTOCOL "network.protocol.name" "`http`, or `tcp` for bytes that weft does not look into.";
    VERSION "network.protocol.version" "The version of HTTP: `1.1` or `2`.";
    IO "network.io.direction" "`receive` or `transmit`, as the pod's application sees it.";
    SERVER_ADDRESS "server.address" "Outbound: the name of what was called, as NAME.NAMESPACE.";
    SERVER_PORT "server.port" "The port that was called.";
    SCHEME "url.scheme" "Always `http`: what the application sees.";
    TLS_VERSION "tls.protocol.version" "Always `1.3`; none where the handshake failed.";
    TLS_CIPHER "tls.cipher" "The cipher suite.";
    TLS_CURVE "tls.curve" "The key exchange group.";
    OVERFLOW "otel.metric.overflow" "`true`: all series that there was no room for, together; they have no other label.";
    SERVICE_NAME "service.name" "What `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` says; else the workload (its service account), or the program. OTLP has the same.";
    SERVICE_NAMESPACE "service.namespace" "Its namespace.";
    SERVICE_INSTANCE "service.instance.id" "Which instance: what `OTEL_RESOURCE_ATTRIBUTES` says; else the pod, as NAMESPACE/NAME, or its first address until there is a certificate, for which what is pushed waits 30 s.";
    SERVICE_VERSION "service.version" "weft's version.";
}

metrics! {
    TARGET_INFO "target" Info "" [Sidecar ControlPlane Injector Cni] [SERVICE_NAME, SERVICE_NAMESPACE, SERVICE_INSTANCE, SERVICE_VERSION]
        "What the program is.";

    HTTP_SERVER_DURATION "http.server.request.duration" Histogram "s" [Sidecar]
        [PEER, MTLS, METHOD, STATUS, ERROR, VERSION, SERVER_PORT, SCHEME]
        "Time from the head of a request that came in to the end of its answer.";
    HTTP_CLIENT_DURATION "http.client.request.duration" Histogram "s" [Sidecar]
        [PEER, SERVICE, ROUTE, MTLS, METHOD, STATUS, ERROR, VERSION, SERVER_ADDRESS, SERVER_PORT, SCHEME]
        "Time from the head of a request that went out to the end of its answer, repetitions included.";
    RPC_SERVER_DURATION "rpc.server.call.duration" Histogram "s" [Sidecar]
        [PEER, MTLS, RPC_SYSTEM, GRPC_STATUS, ERROR, SERVER_PORT]
        "Time that a gRPC call took that came in. It is one of the HTTP requests, too.";
    RPC_CLIENT_DURATION "rpc.client.call.duration" Histogram "s" [Sidecar]
        [PEER, SERVICE, ROUTE, MTLS, RPC_SYSTEM, GRPC_STATUS, ERROR, SERVER_ADDRESS, SERVER_PORT]
        "Time that a gRPC call took that went out. It is one of the HTTP requests, too.";
    IO_BYTES "weft.network.io" Counter "By" [Sidecar]
        [DIRECTION, PEER, SERVICE, MTLS, PROTOCOL, VERSION, SERVER_PORT, IO]
        "Bytes that were relayed: of opaque connections all, of HTTP the bodies.";
    RETRIES "weft.retries" Counter "{request}" [Sidecar] [DIRECTION, PEER, SERVICE, MTLS, PROTOCOL, VERSION, SERVER_PORT]
        "Requests that were sent again.";
    ERRORS "weft.errors" Counter "{error}" [Sidecar] [DIRECTION, PEER, SERVICE, MTLS, PROTOCOL, VERSION, SERVER_PORT, ERROR]
        "Refusals and failures of weft's own making, of requests, by reason.";
    REFUSED "weft.refused" Counter "{connection}" [Sidecar] [ERROR]
        "Connections that were refused or ended before or without a request, by reason.";

    CONNECTIONS "weft.connections" Counter "{connection}" [Sidecar]
        [DIRECTION, PEER, SERVICE, MTLS, PROTOCOL, VERSION, SERVER_PORT]
        "Connections that were relayed: opaque ones, and those that HTTP came in on.";
    CONNECTIONS_OPEN "weft.connections.open" UpDownCounter "{connection}" [Sidecar]
        [DIRECTION, PEER, SERVICE, MTLS, PROTOCOL, VERSION, SERVER_PORT]
        "Of these, those that are open.";
    CONNECTIONS_ACCEPTED "weft.connections.accepted" Counter "{connection}" [Sidecar] []
        "Connections that were accepted, in and out; each stream of a link is one.";
    ACCEPT_FAILURES "weft.accept_failures" Counter "{failure}" [Sidecar] []
        "Times that accepting failed.";
    CONNECTIONS_HELD "weft.connections.held" UpDownCounter "{connection}" [Sidecar] []
        "Connections that are held, in and out.";
    CONNECTIONS_LIMIT "weft.connections.limit" UpDownCounter "{connection}" [Sidecar] []
        "Connections that may be held; more are shed.";
    HANDSHAKES "weft.tls.handshake.duration" Histogram "s" [Sidecar]
        [TLS_ROLE, TLS_VERSION, TLS_CIPHER, TLS_CURVE, ERROR]
        "Time that TLS handshakes with other sidecars took, those that failed included.";
    DETECTIONS "weft.detections" Counter "{connection}" [Sidecar] [DIRECTION, OUTCOME]
        "Connections by what they turned out to speak: `mesh`, `http/1`, `http/2`, `tls`, `opaque`, `server-first`, `silent`, or `declared` where nothing was looked at.";

    POOL_CONNECTIONS "weft.pool.connections" UpDownCounter "{connection}" [Sidecar] [VERSION, STATE]
        "Connections to endpoints that HTTP requests go out on: `active` with a request on them, or `idle`. Looked at every 5 s.";
    LINKS "weft.links" UpDownCounter "{connection}" [Sidecar] []
        "Connections to other sidecars that carry many streams each. Looked at every 5 s.";
    LINK_STREAMS "weft.link.streams" UpDownCounter "{stream}" [Sidecar] []
        "Streams that are open on them: opaque connections, and HTTP/1 connections that are kept. Looked at every 5 s.";
    POOL_WAITING "weft.pool.waiting" UpDownCounter "{request}" [Sidecar] []
        "Requests that wait for a connection to an endpoint.";
    RETRY_BUDGET "weft.retry_budget.remaining" Gauge "{request}" [Sidecar] [SERVICE]
        "Requests to a service that may be sent again now.";
    BREAKER_ENDPOINTS "weft.breaker.endpoints" UpDownCounter "{endpoint}" [Sidecar] [SERVICE, STATE]
        "Endpoints of a service by how their circuit breakers stand: `closed`, `open` (ejected) or `half-open`.";
    EJECTIONS "weft.ejections" Counter "{ejection}" [Sidecar] [PEER]
        "Times that an endpoint was ejected.";
    EJECTIONS_SPARED "weft.ejections.spared" Counter "{ejection}" [Sidecar] [PEER]
        "Times that an endpoint should have been ejected, and as many as may be were.";
    READMISSIONS "weft.readmissions" Counter "{endpoint}" [Sidecar] [PEER]
        "Times that an ejected endpoint came back.";
    MIRRORS_DROPPED "weft.mirrors.dropped" Counter "{request}" [Sidecar] []
        "Copies of requests that were not sent: too many under way, or a body too long to keep.";

    DECISIONS "weft.policy.decisions" Counter "{call}" [Sidecar] [DIRECTION, VERDICT]
        "Requests and opaque connections that policies were asked about: `inbound` those of callers, `outbound` those that network policies or the rules of egress are about.";
    DENIALS "weft.denials" Counter "{call}" [Sidecar] [POLICY, RULE, REASON]
        "Calls that authorization denied, by policy, rule and cause.";
    NOTICES "weft.policy_notices" Counter "{call}" [Sidecar] [POLICY, NOTICE]
        "Calls that an AUDIT policy matches, or that policies in dry run would treat otherwise.";
    JWT_FETCHES "weft.jwt.key_fetches" Counter "{fetch}" [Sidecar] [URL, OUTCOME]
        "Times that keys of a JwtIssuer were fetched, by URL: `ok` or `failed`.";
    JWT_AGE "weft.jwt.keys_age" Gauge "s" [Sidecar] [URL]
        "Time since keys of a JwtIssuer were fetched last; -1 where there are none.";

    CERTIFICATE_EXPIRY "weft.certificate.expiry" Gauge "s" [Sidecar] []
        "Time until the certificate in use expires; negative after it, 0 without one.";
    CERTIFICATE_NOT_AFTER "weft.certificate.not_after" Gauge "s" [Sidecar] []
        "When the certificate in use expires, in seconds since the Unix epoch; 0 without one.";
    CERTIFICATE_ANCHOR_NOT_AFTER "weft.certificate.anchor_not_after" Gauge "s" [Sidecar] []
        "When the anchor ends that the certificate in use leads to, in seconds since the Unix epoch; 0 without one.";
    CERTIFICATE_RENEWAL_FAILING "weft.certificate.renewal_failing_since" Gauge "s" [Sidecar] []
        "Since when renewal has failed, in seconds since the Unix epoch; 0 where it does not.";
    IDENTITIES_DENIED "weft.identities.denied" Gauge "{identity}" [Sidecar] []
        "Identities and certificates that are refused though anchors vouch for them.";
    READY "weft.ready" Gauge "" [Sidecar] []
        "Whether certificate, bundle and the first policies are there.";
    DISCOVERY_CONNECTED "weft.discovery.connected" Gauge "" [Sidecar] []
        "Whether the discovery stream is up.";
    DISCOVERY_STALENESS "weft.discovery.staleness" Gauge "s" [Sidecar] []
        "Time since the control plane was last heard; while the stream is up it is heard at every heartbeat. Before the first word: since the start.";
    DISCOVERY_ADDRESSES "weft.discovery.addresses" Gauge "{address}" [Sidecar] []
        "Addresses that are subscribed to.";
    DISCOVERY_STREAMS "weft.discovery.streams" Counter "{stream}" [Sidecar] []
        "Discovery streams that were opened.";
    DISCOVERY_REJECTED "weft.discovery.rejected" Counter "{resource}" [Sidecar] []
        "Resources from the control plane that could not be applied: the earlier ones stay in force.";
    ADMIN_REFUSED "weft.admin.refused" Counter "{connection}" [Sidecar] [REASON]
        "Admin connections that were closed because there were too many.";

    SERIES "weft.metrics.series" UpDownCounter "{series}" [Sidecar] []
        "Sets of labels that the workers keep apart; more than `--metrics-series` for each worker are counted together.";
    SERIES_OVERFLOWS "weft.metrics.overflows" Counter "{series}" [Sidecar] []
        "Times that a set of labels found no room.";
    SPANS_PROCESSED "otel.sdk.processor.span.processed" Counter "{span}" [Sidecar] [ERROR]
        "Spans that were handed to the exporter, or, with an error, dropped before it.";
    SPANS_EXPORTED "otel.sdk.exporter.span.exported" Counter "{span}" [Sidecar] [ERROR]
        "Spans whose export has ended, well or, with an error, not.";
    LOGS_PROCESSED "otel.sdk.processor.log.processed" Counter "{log_record}" [Sidecar] [ERROR]
        "Access-log records that were handed to the exporter, or, with an error, dropped before it.";
    LOGS_EXPORTED "otel.sdk.exporter.log.exported" Counter "{log_record}" [Sidecar] [ERROR]
        "Access-log records whose export has ended, well or, with an error, not.";
    SPANS_WAITING "otel.sdk.processor.span.queue.size" UpDownCounter "{span}" [Sidecar] []
        "Spans that wait to be exported.";
    RECORDS_LOST "weft.telemetry.records_lost" Counter "{record}" [Sidecar] []
        "Requests and connections that nothing is told of: the way to the telemetry thread was full.";
    LOG_LOST "weft.log.lost" Counter "{line}" [Sidecar ControlPlane Injector Cni] []
        "Lines of the program's own log that were dropped, for whoever reads standard error did not take them in time.";
    LINES_LOST "weft.access_log.lost" Counter "{line}" [Sidecar] []
        "Lines of the access log that standard output did not take in time.";
    POINTS_EXPORTED "otel.sdk.exporter.metric_data_point.exported" Counter "{data_point}" [Sidecar ControlPlane] [ERROR]
        "Data points of metrics whose export has ended, well or, with an error, not.";

    CP_READY "weft.control_plane.ready" Gauge "" [ControlPlane] []
        "Whether this replica serves.";
    CP_LEADER "weft.control_plane.leader" Gauge "" [ControlPlane] []
        "Whether this replica holds the Lease.";
    CP_GENERATION "weft.control_plane.generation" Gauge "{generation}" [ControlPlane] []
        "Generation of the snapshot, as this replica counts.";
    CP_SIDECARS "weft.control_plane.sidecars" UpDownCounter "{sidecar}" [ControlPlane] []
        "Sidecars that are connected to this replica.";
    CP_SERVICES "weft.control_plane.services" Gauge "{service}" [ControlPlane] []
        "Services in the model.";
    CP_WORKLOADS "weft.control_plane.workloads" Gauge "{pod}" [ControlPlane] []
        "Pods in the model.";
    CP_STRAYS "weft.control_plane.strays" Gauge "{pod}" [ControlPlane] []
        "Pods without the sidecar that they should have; `weft check` names them.";
    CP_PROBLEMS "weft.control_plane.problems" Gauge "{problem}" [ControlPlane] []
        "Problems that stand; `weft status` names them.";
    CP_ISSUER_EXPIRY "weft.control_plane.issuer_expiry" Gauge "s" [ControlPlane] []
        "Time until the certificate ends that others are signed with.";
    CP_ANCHOR_EXPIRY "weft.control_plane.anchor_expiry" Gauge "s" [ControlPlane] []
        "Time until the root ends under which certificates are issued.";
    CP_CA_REFUSED "weft.control_plane.ca_refused" Gauge "" [ControlPlane] []
        "Whether the CA that is given now is not in use; `weft status` says why.";
    CP_IDENTITIES_DENIED "weft.control_plane.identities_denied" Gauge "{identity}" [ControlPlane] []
        "Identities and certificates that are denied.";
    CP_CONNECTIONS "weft.control_plane.connections" UpDownCounter "{connection}" [ControlPlane] [PORT_NAME]
        "Connections that are open, by port.";
    CP_CONNECTIONS_REFUSED "weft.control_plane.connections_refused" Counter "{connection}" [ControlPlane] [PORT_NAME, REASON]
        "Connections that were closed because there were too many.";

    INJECTOR_REVIEWS "weft.injector.reviews" Counter "{review}" [Injector] [VERDICT, REASON]
        "Admission reviews that were answered.";
    INJECTOR_DURATION "weft.injector.review.duration" Histogram "s" [Injector] []
        "Time that a review took to answer.";
    INJECTOR_BAD_REQUESTS "weft.injector.bad_requests" Counter "{request}" [Injector] [STATUS]
        "Requests that were no admission review.";
    INJECTOR_BAD_HANDSHAKES "weft.injector.bad_handshakes" Counter "{handshake}" [Injector] []
        "TLS handshakes that failed.";
    INJECTOR_CERTIFICATE_EXPIRY "weft.injector.certificate_expiry" Gauge "s" [Injector] []
        "Time until the certificate in use expires.";
    INJECTOR_READY "weft.injector.ready" Gauge "" [Injector] []
        "Whether this replica is ready.";
    INJECTOR_CONNECTIONS "weft.injector.connections" UpDownCounter "{connection}" [Injector] [PORT_NAME]
        "Connections that are open, by port.";
    INJECTOR_CONNECTIONS_REFUSED "weft.injector.connections_refused" Counter "{connection}" [Injector] [PORT_NAME, REASON]
        "Connections that were closed because there were too many.";

    CNI_ANSWERS "weft.cni.answers" Counter "{answer}" [Cni] [TASK, OUTCOME]
        "Questions of the plugin that were answered.";
    CNI_REPAIRS "weft.cni.repairs" Counter "{pod}" [Cni] [ACTION]
        "Pods that started without their redirect, by what was done about it.";
    CNI_WITHOUT_REDIRECT "weft.cni.pods_without_redirect" Gauge "{pod}" [Cni] []
        "Pods of this node that wait for want of their redirect.";
    CNI_CHAIN_WRITES "weft.cni.chain_writes" Counter "{write}" [Cni] []
        "Times that the plugin's entry had to be written.";
    CNI_READY "weft.cni.ready" Gauge "" [Cni] []
        "Whether the plugin is in the chain and is answered.";
    CNI_CONNECTIONS "weft.cni.connections" UpDownCounter "{connection}" [Cni] [PORT_NAME]
        "Connections that are open, by port.";
    CNI_CONNECTIONS_REFUSED "weft.cni.connections_refused" Counter "{connection}" [Cni] [PORT_NAME, REASON]
        "Connections that were closed because there were too many.";
}

/// The metrics of one program.
pub fn of(program: Program) -> impl Iterator<Item = &'static Metric> {
    ALL.iter().copied().filter(move |metric| metric.programs.contains(&program))
}

/// What of a program's families and the table do not agree: metrics that it tells and the table does not give it, that the table gives it and it does
/// not tell, and those that it tells twice. For tests.
pub fn disagreements(program: Program, families: &[super::Family]) -> Vec<String> {
    let told = |metric: &Metric| families.iter().filter(|f| f.metric.name == metric.name).count();
    let missing = of(program).filter(|m| told(m) != 1).map(|m| format!("{} is told {} times, not once", m.name, told(m)));
    let foreign = families.iter().filter(|f| !of(program).any(|m| m.name == f.metric.name));
    missing.chain(foreign.map(|f| format!("{} is not in the table for the {}", f.metric.name, program.as_str()))).collect()
}
