use super::*;

fn read(text: &str) -> Result<Mesh, Vec<Problem>> {
    Mesh::read("mesh.yaml", Path::new("/srv"), text)
}

fn good(text: &str) -> Mesh {
    read(text).unwrap_or_else(|problems| panic!("{problems:?}"))
}

#[test]
fn what_a_file_leaves_out_has_a_default() {
    let mesh = good("workloads:\n- name: web\n  command: [serve]\n  ports: [{port: 8080}]\n");
    assert_eq!((mesh.name.as_str(), mesh.mtls), ("default", MtlsMode::Permissive));
    let web = &mesh.workloads[0];
    assert_eq!((web.namespace.as_str(), web.service_account.as_str()), ("default", "web"));
    assert_eq!((web.replicas, web.sidecar, web.restart), (1, true, Restart::Always));
    assert_eq!(web.labels, Pairs::from([("app".to_owned(), "web".to_owned())]));
    assert_eq!(web.health.probe, Probe::Tcp(8080));
    assert_eq!(web.health.interval, Duration::from_secs(1));
    assert_eq!(web.pod(3), "web-3");
    let service = &mesh.services[0];
    assert_eq!((service.name.as_str(), service.headless, service.ports.len()), ("web", false, 1));
    assert!(service.selects(web));
    assert_eq!(mesh.namespaces.len(), 1);
}

#[test]
fn everything_that_can_be_written_is_read() {
    let mesh = good(
        "name: shop
mtls: permissive
defaultPolicy: deny
namespaces: {shop: {mtls: strict, defaultPolicy: allow-same-namespace}, empty: }
workloads:
  - name: web
    namespace: shop
    serviceAccount: front
    replicas: 2
    command: exec ./serve --port 8080
    workdir: app
    env: {NUMBER: 5, FLAG: true, VERSION: 1.10}
    ports:
      - {name: http, port: 8080, protocol: http}
      - {name: metrics, port: 9090}
    labels: {app: web, tier: front}
    mtls: strict
    health: {http: /healthz, interval: 500ms, timeout: 2s}
    restart: never
    user: nobody
  - {name: db, namespace: shop, command: [sleep, 5], sidecar: false, health: {command: [pg_isready]}}
services:
  - {name: web, namespace: shop, selector: {tier: front}, ports: [{name: http, port: 80, targetPort: http, protocol: http}]}
  - {name: web-all, namespace: shop, selector: {app: web}, headless: true}
manifests: [extra/*.yaml, /etc/more.yaml]
",
    );
    let (web, db) = (&mesh.workloads[0], &mesh.workloads[1]);
    assert_eq!(web.command, ["sh", "-c", "exec ./serve --port 8080"]);
    assert_eq!(web.workdir.as_deref(), Some(Path::new("/srv/app")));
    let env: Vec<&str> = web.env.values().map(String::as_str).collect();
    assert_eq!(env, ["true", "5", "1.10"]);
    assert_eq!(web.health.probe, Probe::Http { port: 8080, path: "/healthz".to_owned() });
    assert_eq!(web.user.as_deref(), Some("nobody"));
    assert_eq!((db.command.join(" ").as_str(), db.sidecar), ("sleep 5", false));
    assert_eq!(mesh.services[0].ports[0].target, TargetPort::Name("http".to_owned()));
    assert_eq!(mesh.manifests, [Path::new("/srv/extra/*.yaml"), Path::new("/etc/more.yaml")]);
    assert_eq!(mesh.default_policy, Posture::Deny);
    let own: Vec<_> = mesh.namespaces.values().map(|own| (own.mtls, own.default_policy)).collect();
    assert_eq!(own, [(None, None), (Some(MtlsMode::Strict), Some(Posture::AllowSameNamespace))]);
    assert_eq!(mesh.namespaces.len(), 2);
}

#[test]
fn what_cannot_be_read_is_said_with_line_and_field() {
    let table = [
        ("workloads:\n- name: web\n  comand: [x]\n", 3, "workloads[0].comand", "unknown field `comand`"),
        ("workloads:\n- name: web\n  command: [x]\n  replicas: many\n", 4, "workloads[0].replicas", "0 to 65535"),
        ("workloads:\n- name: web\n  command: [x]\n  mtls: maybe\n", 4, "workloads[0].mtls", "strict"),
        ("workloads:\n- name: web\n  command: [x]\n  ports:\n  - port: http\n", 5, "workloads[0].ports[0].port", "0 to 65535"),
        ("workloads:\n- name: web\n  command: [x]\n  health: {interval: 5}\n", 4, "workloads[0].health.interval", "250ms"),
        ("workloads: []\nservices:\n- name: web\n  address: 10.47\n", 4, "services[0].address", ""),
    ];
    for (text, line, field, message) in table {
        let problems = read(text).expect_err(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        let problem = &problems[0];
        assert_eq!(problem.place, format!("mesh.yaml:{line}"), "{problem}");
        assert_eq!(problem.field, field, "{problem}");
        assert!(problem.message.contains(message), "{problem}");
    }
}

#[test]
fn what_cannot_be_meant_is_said_all_at_once_with_the_line_of_its_element() {
    let text = "workloads:
- name: Web
  command: []
  replicas: 201
- name: db
  command: [x]
  sidecar: false
  mtls: strict
  ports:
  - {port: 0}
  - {port: 5432, protocol: psql}
  - {port: 5432}
- name: side
  command: [x]
  ports: [{port: 4743}]
services:
- name: web
  address: 10.0.0.1
";
    let shown: Vec<String> = read(text).expect_err("all wrong").iter().map(ToString::to_string).collect();
    let expected = [
        "mesh.yaml:2: workloads[0].name: ",
        "mesh.yaml:2: workloads[0].replicas: ",
        "mesh.yaml:2: workloads[0].command: ",
        "mesh.yaml:5: workloads[1].mtls: ",
        "mesh.yaml:10: workloads[1].ports[0].port: ",
        "mesh.yaml:11: workloads[1].ports[1].protocol: ",
        "mesh.yaml:12: workloads[1].ports[2].port: ",
        "mesh.yaml:15: workloads[2].ports[0].port: ",
        "mesh.yaml:17: services[0].ports: ",
        "mesh.yaml:17: services[0].address: ",
    ];
    for (problem, beginning) in shown.iter().zip(expected) {
        assert!(problem.starts_with(beginning), "{problem:?} does not begin with {beginning:?}");
    }
    assert_eq!(shown.len(), expected.len(), "{shown:#?}");
}

#[test]
fn parts_that_do_not_fit_together_are_problems() {
    let web = "- {name: web, command: [x], ports: [{name: http, port: 80}]}\n";
    let table = [
        (format!("workloads:\n{web}{web}services: []\n"), "workloads[1].name", "stands twice"),
        (format!("workloads:\n{web}services: [{{name: shop, ports: [{{port: 80}}]}}]\n"), "services[0].selector", "app: shop"),
        (
            format!("workloads:\n{web}services: [{{name: web, ports: [{{port: 80, targetPort: https}}]}}]\n"),
            "services[0].ports[0].targetPort",
            "https",
        ),
    ];
    for (text, field, message) in table {
        let problems = read(&text).expect_err(&text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].field, field);
        assert!(problems[0].message.contains(message), "{}", problems[0]);
    }
}

#[test]
fn any_text_is_read_or_refused() {
    for text in ["", "workloads", "[]", "{", "workloads: {}", "workloads:\n- 5\n", "\t", "a: &a [*a]", "--- \n---\n"] {
        assert!(read(text).is_err(), "{text:?} was accepted");
    }
}

#[test]
fn the_example_is_good() {
    let text = include_str!("../../../examples/hello.yaml");
    let mesh = good(text);
    assert!(mesh.workloads.iter().any(|w| w.replicas == 2));
}
