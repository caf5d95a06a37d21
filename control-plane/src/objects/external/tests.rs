use super::*;
use crate::objects::Object;
use crate::watch::parse;

/// An external service `shop/x` with this `spec`.
fn read(spec: &str) -> Arc<ExternalObject> {
    let text = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: ExternalService\nmetadata: {{name: x, namespace: shop, generation: 3}}\nspec: {spec}\n"
    );
    let mut objects = parse::parse("test", &text).unwrap_or_else(|problem| panic!("{spec}: {problem}"));
    match objects.remove(0) {
        Object::ExternalService(object) => object,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_field_is_read() {
    let spec = "{hosts: [Pay.Example.com, '*.example.org', 203.0.113.9], ports: [{port: 80, protocol: http}, {port: 8080, targetPort: 9443, name: alt, protocol: http2}],
        tls: {mode: originate, sni: Front.Example.com.}, resolution: static, endpoints: [{address: 203.0.113.9, port: 444}, {address: 'fd00:1::9'}]}";
    let object = read(spec);
    assert_eq!(object.generation, 3);
    let x = object.content.clone().unwrap_or_else(|e| panic!("{e:?}"));
    let hosts: Vec<String> = x.hosts.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["pay.example.com", "*.example.org", "203.0.113.9"]);
    let ports: Vec<_> = x.ports.iter().map(|p| (p.port, p.target, p.protocol)).collect();
    assert_eq!(ports, [(80, 443, ExternalProtocol::Http), (8080, 9443, ExternalProtocol::Http2)]);
    assert_eq!(x.origination, Some(Origination { sni: Some("front.example.com".into()), server: Server::System }));
    assert_eq!(x.endpoints().iter().map(|e| e.port).collect::<Vec<_>>(), [Some(444), None]);
    let mutual = read(
        "{hosts: [stock.example], ports: [{port: 80, protocol: http}, {port: 5432, protocol: tcp}],
          tls: {mode: mutual, identities: ['spiffe://east.example/ns/shop/sa/stock', 'spiffe://east.example/*']}}",
    );
    let mutual = mutual.content.clone().unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(mutual.origination.as_ref().and_then(|o| o.peer()).map(|p| p.domain().as_str()), Some("east.example"));
    assert_eq!(mutual.ports[0].target, 80, "a peer listens where its application does");
    let plain = read("{hosts: [a.example], ports: [{port: 443, protocol: tls}]}").content.clone().expect("good");
    assert_eq!((plain.ports[0].target, &plain.origination, &plain.resolution), (443, &None, &Resolution::Dns));
}

#[test]
fn what_cannot_be_honoured_names_its_field() {
    let ports = "ports: [{port: 443, protocol: tls}]";
    for (spec, field, message) in [
        (format!("{{hosts: [], {ports}}}"), "spec.hosts", "empty"),
        (format!("{{hosts: ['*'], {ports}}}"), "spec.hosts[0]", "host"),
        (format!("{{hosts: ['a.*.b'], {ports}}}"), "spec.hosts[0]", "host"),
        (format!("{{hosts: ['https://a.b'], {ports}}}"), "spec.hosts[0]", "port"),
        (format!("{{hosts: [a.b, A.B.], {ports}}}"), "spec.hosts[1]", "twice"),
        (format!("{{hosts: [127.1], {ports}}}"), "spec.hosts[0]", "last label is a number"),
        (format!("{{hosts: [203.0.113.9], {ports}}}"), "spec.hosts[0]", "endpoints"),
        (format!("{{hosts: ['*.203.0.113.9'], {ports}}}"), "spec.hosts[0]", "before a name"),
        ("{hosts: [a.b], ports: []}".into(), "spec.ports", "empty"),
        ("{hosts: [a.b], ports: [{port: 0, protocol: tcp}]}".into(), "spec.ports[0].port", "0 is not a port"),
        ("{hosts: [a.b], ports: [{port: 1, protocol: udp}]}".into(), "spec.ports[0].protocol", "udp"),
        ("{hosts: [a.b], ports: [{port: 1, protocol: tcp}, {port: 1, protocol: tls}]}".into(), "spec.ports[1].port", "twice"),
        (format!("{{hosts: [a.b], {ports}, tls: {{mode: originate}}}}"), "spec.ports[0].protocol", "http and http2"),
        (format!("{{hosts: [a.b], {ports}, tls: {{sni: c.d}}}}"), "spec.tls.sni", "originate"),
        (format!("{{hosts: [a.b], {ports}, tls: {{caFile: /etc/ca.pem}}}}"), "spec.tls.caFile", "unknown field"),
        (
            "{hosts: [a.b], ports: [{port: 80, protocol: http}], tls: {mode: originate, sni: 10.0.0.1}}".into(),
            "spec.tls.sni",
            "name",
        ),
        (
            "{hosts: [a.b], ports: [{port: 80, protocol: http}], tls: {mode: originate, caCertificates: nothing}}".into(),
            "spec.tls.caCertificates",
            "certificate",
        ),
        ("{hosts: [a.b], ports: [{port: 80, protocol: http}], tls: {mode: mutual}}".into(), "spec.tls.identities", "0 of them"),
        (
            "{hosts: [a.b], ports: [{port: 80, protocol: http}], tls: {mode: mutual, identities: ['*']}}".into(),
            "spec.tls.identities[0]",
            "whole identities",
        ),
        (
            "{hosts: [a.b], ports: [{port: 80, protocol: http}], tls: {mode: originate, identities: ['spiffe://e/*']}}".into(),
            "spec.tls.identities",
            "mutual",
        ),
        (
            "{hosts: [a.b], ports: [{port: 80, protocol: http}], tls: {mode: mutual, identities: ['spiffe://e/*'], caCertificates: x}}".into(),
            "spec.tls.caCertificates",
            "originate",
        ),
        (
            format!("{{hosts: [a.b], {ports}, tls: {{mode: mutual, identities: ['spiffe://e/*']}}}}"),
            "spec.ports[0].protocol",
            "mutual",
        ),
        (format!("{{hosts: [a.b], {ports}, endpoints: [{{address: 1.2.3.4}}]}}"), "spec.endpoints", "static"),
        (format!("{{hosts: [a.b], {ports}, resolution: static}}"), "spec.endpoints", "empty"),
        (
            format!("{{hosts: [a.b], {ports}, resolution: static, endpoints: [{{address: host}}]}}"),
            "spec.endpoints[0].address",
            "IP address",
        ),
        (
            format!("{{hosts: [a.b], {ports}, resolution: static, endpoints: [{{address: 127.0.0.1}}]}}"),
            "spec.endpoints[0].address",
            "loopback",
        ),
        (format!("{{hosts: [a.b], {ports}, resolution: srv}}"), "spec.resolution", "srv"),
        (format!("{{hosts: [a.b], {ports}, location: outside}}"), "spec.location", "unknown field"),
    ] {
        let (at, why) = read(&spec).content.clone().expect_err(&spec);
        assert!(at == field && why.contains(message), "{spec}: {at}: {why}");
    }
}
