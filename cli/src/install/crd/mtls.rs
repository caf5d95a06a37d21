//! `MtlsPolicy`: whether pods let in plaintext.

use serde_json::Value;

use super::schema::{Field, ancestors, any_text, list, number, object, sidecars, text, whole, word};
use super::{Names, accepted, column, namespaced};

const MODES: [&str; 2] = ["strict", "permissive"];

pub(super) fn definition() -> Value {
    let names = Names { kind: "MtlsPolicy", singular: "mtlspolicy", plural: "mtlspolicies", short: "mpol" };
    let columns = [
        column("Mode", "string", ".spec.mode", "The mode where no port says otherwise"),
        accepted(),
        column(
            "Overruled",
            "string",
            ".status.ancestors[*].conditions[?(@.type==\"Overruled\")].status",
            "Whether a stricter one holds somewhere in its stead",
        ),
        column("Sidecars", "integer", ".status.sidecars.subscribed", "How many sidecars it is for"),
        column("Applied", "integer", ".status.sidecars.applied", "How many of them have it in force"),
        column("Age", "date", ".metadata.creationTimestamp", "How old it is"),
    ];
    let schema = whole(
        "Whether pods let in plaintext. The nearest word is followed: of the port, the workload, the namespace, the mesh. Where two of one level differ, the \
         stricter holds.",
        spec(),
        vec![ancestors(), sidecars()],
    );
    namespaced(&names, &columns, &schema)
}

fn spec() -> Field {
    object(
        "spec",
        "What is wanted. Of a policy that cannot be honoured the version before it stays in force; without one, the pods that it may be for are strict.",
        vec![
            selector(),
            word(
                "mode",
                &MODES,
                "strict: mesh peers alone come in. permissive: so does plaintext. Left out: what is less near says it.",
            ),
            list(
                "ports",
                64,
                "Modes of single ports.",
                object(
                    "",
                    "The mode of a port.",
                    vec![
                        number("port", 1, 65_535, "The pod's own port, to which that of a Service leads.").required(),
                        word("mode", &MODES, "Its mode.").required(),
                    ],
                ),
            )
            .shortest(1),
        ],
    )
    .rule("has(self.mode) || has(self.ports)", "a policy needs a mode, or ports with a mode each")
}

fn selector() -> Field {
    let label = || any_text("", "A value of the label.").longest(63);
    let expression = object(
        "",
        "Something that must hold of a pod's labels.",
        vec![
            text("key", "The name of the label.").longest(317).required(),
            word(
                "operator",
                &["In", "NotIn", "Exists", "DoesNotExist"],
                "In and NotIn: whether its value is one of these; NotIn holds without the label, too. Exists and DoesNotExist: whether the pod has it.",
            )
            .required(),
            list("values", 64, "For In and NotIn: values. The others have none.", label()),
        ],
    );
    object(
        "selector",
        "The pods of the policy's namespace that it is for. An empty one picks all. Left out: the namespace, or, in the namespace of the installation, the \
         mesh.",
        vec![
            Field::labels("matchLabels", 64, "Labels that a pod must have, all of them."),
            list("matchExpressions", 32, "What must hold of a pod's labels, all of it.", expression),
        ],
    )
}
