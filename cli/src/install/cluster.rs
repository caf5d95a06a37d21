//! A cluster, through its API server: objects as JSON, of kinds that [`super::kinds`] knows.

use std::future::Future;

use ::http::{Method, Request, header};
use anyhow::{Context, bail};
use kube::config::{Config, KubeConfigOptions};
use serde_json::{Value, json};
use weft_core::failure::chain;

use super::kinds::Kind;
use super::version::KubeVersion;
use crate::http::escaped;

/// Who the API server takes us for, where it keeps apart who set which field.
pub(crate) const FIELD_MANAGER: &str = "weft";
/// How many objects one answer has at most.
const PAGE: usize = 500;
const JSON: &str = "application/json";
const APPLY: &str = "application/apply-patch+yaml";

/// A connection to a cluster.
pub(crate) struct Cluster {
    client: kube::Client,
    pub(crate) version: KubeVersion,
    /// As the server says it: `v1.31.2`.
    pub(crate) version_text: String,
    /// Where the server is, for messages.
    pub(crate) server: String,
}

/// How an object is applied.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct How {
    /// Nothing is changed; the answer is as if.
    pub(crate) dry_run: bool,
    /// Fields that others have set are taken over.
    pub(crate) force: bool,
}

/// Runs what talks to a cluster to its end.
pub(crate) fn run<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

impl Cluster {
    /// Connects as the kubeconfig says, or inside of a pod as its service account.
    pub(crate) async fn connect(context: Option<&str>) -> anyhow::Result<Self> {
        let config = match context {
            Some(name) => {
                let options = KubeConfigOptions { context: Some(name.to_owned()), ..KubeConfigOptions::default() };
                Config::from_kubeconfig(&options)
                    .await
                    .with_context(|| format!("the kubeconfig's context {name:?} can't be used"))?
            }
            None => Config::infer()
                .await
                .context("no cluster is known: set KUBECONFIG to the path of a kubeconfig, or put one at ~/.kube/config")?,
        };
        let server = config.cluster_url.to_string();
        let client = kube::Client::try_from(config).with_context(|| format!("no connection to {server} can be made"))?;
        let told: Value = client
            .request(Request::get("/version").body(Vec::new())?)
            .await
            .map_err(|error| said(&error))
            .with_context(|| format!("the API server {server} can't be reached"))?;
        let text = |key: &str| told[key].as_str().unwrap_or_default();
        let version = format!("{}.{}", text("major"), text("minor"));
        let version =
            version.parse::<KubeVersion>().map_err(|_| anyhow::anyhow!("{server} says that its version is {version:?}"))?;
        Ok(Self { client, version, version_text: text("gitVersion").to_owned(), server })
    }

    /// One object, or None where it is not there.
    pub(crate) async fn get(&self, kind: Kind, namespace: Option<&str>, name: &str) -> anyhow::Result<Option<Value>> {
        let path = format!("{}/{name}", kind.path(namespace));
        match self.send(Method::GET, &path, JSON, None).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(said(&error)).with_context(|| format!("{} {name} can't be read", kind.kind)),
        }
    }

    /// All objects of a kind in one namespace or everywhere, those with a label or all of them. A kind that the
    /// server does not have, has none.
    pub(crate) async fn list(&self, kind: Kind, namespace: Option<&str>, selector: &str) -> anyhow::Result<Vec<Value>> {
        self.pages(kind, &format!("{}?limit={PAGE}&labelSelector={}", kind.path(namespace), escaped(selector))).await
    }

    /// All objects of a kind that have one name, in any namespace.
    pub(crate) async fn named(&self, kind: Kind, name: &str) -> anyhow::Result<Vec<Value>> {
        self.pages(kind, &format!("{}?limit={PAGE}&fieldSelector=metadata.name%3D{}", kind.path(None), escaped(name))).await
    }

    async fn pages(&self, kind: Kind, base: &str) -> anyhow::Result<Vec<Value>> {
        match self.items(base, kind.api_version, kind.kind).await {
            Ok(objects) => Ok(objects),
            Err(error) if is_missing(&error) => Ok(Vec::new()),
            Err(error) => Err(said(&error)).with_context(|| format!("{} can't be listed", kind.plural)),
        }
    }

    /// All items of a list, page by page.
    async fn items(&self, base: &str, api_version: &str, kind: &str) -> Result<Vec<Value>, kube::Error> {
        let mut objects = Vec::new();
        let mut path = base.to_owned();
        loop {
            let mut page = self.send(Method::GET, &path, JSON, None).await?;
            if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                objects.extend(items.into_iter().map(|item| typed(item, api_version, kind)));
            }
            match page.pointer("/metadata/continue").and_then(Value::as_str) {
                Some(next) if !next.is_empty() => path = format!("{base}&continue={}", escaped(next)),
                _ => return Ok(objects),
            }
        }
    }

    /// Everything that a namespace holds, of whatever kind the server has; but no events, and nothing that is measured. An error
    /// where one kind cannot be listed: then nobody can say what is there.
    pub(crate) async fn everything_in(&self, namespace: &str) -> anyhow::Result<Vec<Value>> {
        let ask = async |path: String| {
            self.send(Method::GET, &path, JSON, None).await.map_err(|error| said(&error)).with_context(|| path.clone())
        };
        let groups = ask("/apis".to_owned()).await?;
        let text = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let groups = groups["groups"].as_array().into_iter().flatten().filter(|group| group["name"] != "metrics.k8s.io");
        let mut versions = vec![("/api/v1".to_owned(), "v1".to_owned())];
        versions.extend(groups.map(|group| {
            let version = text(group, "/preferredVersion/groupVersion");
            (format!("/apis/{version}"), version)
        }));
        let mut objects = Vec::new();
        for (root, version) in versions {
            let served = ask(root.clone()).await?;
            for resource in served["resources"].as_array().into_iter().flatten() {
                let (plural, kind) = (text(resource, "/name"), text(resource, "/kind"));
                let lists = resource["verbs"].as_array().is_some_and(|verbs| verbs.iter().any(|verb| verb == "list"));
                if resource["namespaced"] != true || !lists || plural.contains('/') || kind == "Event" {
                    continue;
                }
                let path = format!("{root}/namespaces/{namespace}/{plural}?limit={PAGE}");
                let items = self.items(&path, &version, &kind).await.map_err(|error| said(&error));
                objects.extend(items.with_context(|| format!("{plural} can't be listed"))?);
            }
        }
        Ok(objects)
    }

    /// Applies an object and returns what became of it.
    pub(crate) async fn apply(&self, object: &Value, how: How) -> anyhow::Result<Value> {
        let kind = Kind::of(object).context("the object is of no kind that can be applied")?;
        let place = Place::of(object);
        let mut path = format!("{}/{}?fieldManager={FIELD_MANAGER}&force={}", kind.path(place.namespace), place.name, how.force);
        if how.dry_run {
            path.push_str("&dryRun=All");
        }
        match self.send(Method::PATCH, &path, APPLY, Some(object)).await {
            Ok(applied) => Ok(applied),
            Err(kube::Error::Api(status)) if status.is_conflict() => bail!(
                "{} {place} has been changed by somebody else: {}; take that over with --force, or undo it there",
                kind.kind,
                status.message
            ),
            Err(error) => Err(said(&error)).with_context(|| format!("{} {place} can't be applied", kind.kind)),
        }
    }

    /// Deletes an object, and in the background what it owns. One that is gone already is no error.
    pub(crate) async fn delete(&self, kind: Kind, namespace: Option<&str>, name: &str) -> anyhow::Result<()> {
        let path = format!("{}/{name}", kind.path(namespace));
        let options = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background" });
        match self.send(Method::DELETE, &path, JSON, Some(&options)).await {
            Ok(_) => Ok(()),
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(said(&error)).with_context(|| format!("{} {name} can't be deleted", kind.kind)),
        }
    }

    /// Whether whoever we are may do this.
    pub(crate) async fn may(&self, verb: &str, kind: Kind, namespace: Option<&str>) -> anyhow::Result<bool> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {
                "resourceAttributes": {
                    "verb": verb,
                    "group": kind.group(),
                    "resource": kind.plural,
                    "namespace": namespace.filter(|_| kind.namespaced).unwrap_or_default(),
                },
            },
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = self.send(Method::POST, path, JSON, Some(&review)).await.map_err(|error| said(&error));
        let answer = answer.context("the server does not say what you may do")?;
        Ok(answer.pointer("/status/allowed").and_then(Value::as_bool).unwrap_or(false))
    }

    /// Whether the server has a resource, as `apps/v1` and `deployments`.
    pub(crate) async fn serves(&self, api_version: &str, plural: &str) -> anyhow::Result<bool> {
        let root = if api_version.contains('/') { "apis" } else { "api" };
        match self.send(Method::GET, &format!("/{root}/{api_version}"), JSON, None).await {
            Ok(list) => Ok(list["resources"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == plural))),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(said(&error)).with_context(|| format!("the server does not say what {api_version} has")),
        }
    }

    async fn send(&self, method: Method, path: &str, content: &str, body: Option<&Value>) -> Result<Value, kube::Error> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(kube::Error::SerdeError)?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, JSON)
            .header(header::CONTENT_TYPE, content)
            .body(body)
            .map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }
}

/// Where an object is.
pub(crate) struct Place<'a> {
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: &'a str,
}

impl<'a> Place<'a> {
    pub(crate) fn of(object: &'a Value) -> Self {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        Self { namespace: text("/metadata/namespace"), name: text("/metadata/name").unwrap_or_default() }
    }
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(self.name),
        }
    }
}

/// The items of a list do not say what they are.
fn typed(mut item: Value, api_version: &str, kind: &str) -> Value {
    if let Some(fields) = item.as_object_mut() {
        fields.insert("apiVersion".to_owned(), api_version.into());
        fields.insert("kind".to_owned(), kind.into());
    }
    item
}

fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// The server's own words, where it said some.
fn said(error: &kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => anyhow::anyhow!("the server says: {}", status.message),
        other => anyhow::anyhow!(chain(other)),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{Ready, ready};
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use ::http::{Response, StatusCode};
    use kube::client::Body;
    use tower_service::Service;

    use super::*;

    type Answer = dyn Fn(&Method, &str) -> Option<Value> + Send + Sync;

    /// An API server that answers by a method and a path with its query; what it does not answer is not there.
    struct Script(Arc<Answer>);

    impl Service<Request<Body>> for Script {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            let asked = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
            let (code, body) = match (self.0)(request.method(), &asked) {
                Some(body) => (StatusCode::OK, body),
                None => (StatusCode::NOT_FOUND, json!({"status": "Failure", "message": "", "reason": "NotFound", "code": 404})),
            };
            let mut response = Response::new(Body::from(body.to_string().into_bytes()));
            *response.status_mut() = code;
            ready(Ok(response))
        }
    }

    impl Cluster {
        pub(crate) fn scripted(answer: impl Fn(&Method, &str) -> Option<Value> + Send + Sync + 'static) -> Self {
            let client = kube::Client::new(Script(Arc::new(answer)), "default");
            Self { client, version: KubeVersion::CURRENT, version_text: "v1".to_owned(), server: "a script".to_owned() }
        }
    }

    #[test]
    fn a_selector_fits_into_a_query() {
        assert_eq!(escaped("app.kubernetes.io/part-of=weft"), "app.kubernetes.io%2Fpart-of%3Dweft");
        assert_eq!(escaped(""), "");
    }
}
