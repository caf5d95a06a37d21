//! The parts of a manifest that injection reads, each found and checked once.

use serde_json::{Map, Value};

use crate::error::{InjectError, excerpt};

pub(crate) type Object = Map<String, Value>;

/// A pod's manifest.
pub(crate) struct Pod<'a> {
    pub(crate) metadata: Metadata<'a>,
    pub(crate) spec: &'a Object,
    pub(crate) init_containers: Option<&'a [Value]>,
    pub(crate) volumes: Option<&'a [Value]>,
    /// Of every sort: init, ordinary and ephemeral.
    pub(crate) containers: Vec<Container<'a>>,
}

/// What injection reads of a container.
pub(crate) struct Container<'a> {
    pub(crate) name: &'a str,
    /// Where it stands: `spec.containers[0]`.
    pub(crate) at: String,
    /// The same as a JSON pointer: `/spec/containers/0`.
    pub(crate) pointer: String,
    pub(crate) object: &'a Object,
    pub(crate) security: Option<&'a Object>,
}

impl<'a> Container<'a> {
    /// The list that it is in: `spec.containers`.
    pub(crate) fn list(&self) -> &str {
        self.at.split('[').next().unwrap_or_default()
    }

    /// The container as a message names it.
    pub(crate) fn said(&self) -> String {
        format!("the container {:?} ({})", excerpt(self.name), self.at)
    }

    /// The ports that it declares, with their protocols.
    pub(crate) fn ports(&self) -> Result<Vec<(i64, &'a str)>, InjectError> {
        self.each_port(|port, at| {
            let number = whole_number_in(port, at, "containerPort")?.unwrap_or_default();
            Ok((number, text_in(port, at, "protocol")?.unwrap_or("TCP")))
        })
    }

    /// The number of the port that it declares by this name.
    pub(crate) fn port_named(&self, name: &str) -> Result<Option<i64>, InjectError> {
        let named = self.each_port(|port, at| {
            let same = text_in(port, at, "name")? == Some(name);
            Ok(if same { whole_number_in(port, at, "containerPort")? } else { None })
        })?;
        Ok(named.into_iter().flatten().next())
    }

    fn each_port<T>(&self, read: impl Fn(&'a Object, &str) -> Result<T, InjectError>) -> Result<Vec<T>, InjectError> {
        let ports = list_in(self.object, &self.at, "ports")?.unwrap_or_default();
        let read_one = |(index, port): (usize, &'a Value)| {
            let at = format!("{}.ports[{index}]", self.at);
            read(as_object(port, &at)?, &at)
        };
        ports.iter().enumerate().map(read_one).collect()
    }
}

impl<'a> Pod<'a> {
    pub(crate) fn parse(manifest: &'a Value) -> Result<Self, InjectError> {
        let root = as_object(manifest, "the pod")?;
        let metadata = Metadata::parse(root)?;
        let spec = object_in(root, "", "spec")?.ok_or_else(|| malformed("", "spec", "an object"))?;
        let init_containers = list_in(spec, "spec", "initContainers")?;
        if list_in(spec, "spec", "containers")?.is_none() {
            return Err(malformed("spec", "containers", "a list of containers"));
        }
        let mut containers = Vec::new();
        for key in ["initContainers", "containers", "ephemeralContainers"] {
            for (index, container) in list_in(spec, "spec", key)?.unwrap_or_default().iter().enumerate() {
                let pointer = format!("/spec/{key}/{index}");
                containers.push(Container::parse(container, format!("spec.{key}[{index}]"), pointer)?);
            }
        }
        Ok(Self { metadata, spec, init_containers, volumes: list_in(spec, "spec", "volumes")?, containers })
    }

    /// The container of any sort that has this name.
    pub(crate) fn container(&self, name: &str) -> Option<&Container<'a>> {
        self.containers.iter().find(|container| container.name == name)
    }
}

impl<'a> Container<'a> {
    fn parse(container: &'a Value, at: String, pointer: String) -> Result<Self, InjectError> {
        let object = as_object(container, &at)?;
        Ok(Self {
            name: text_in(object, &at, "name")?.unwrap_or_default(),
            security: object_in(object, &at, "securityContext")?,
            object,
            pointer,
            at,
        })
    }
}

/// The metadata of a pod or a namespace.
pub(crate) struct Metadata<'a> {
    /// The object itself, where there is one.
    pub(crate) object: Option<&'a Object>,
    pub(crate) annotations: Option<&'a Object>,
    labels: Option<&'a Object>,
}

impl<'a> Metadata<'a> {
    pub(crate) fn parse(root: &'a Object) -> Result<Self, InjectError> {
        let Some(object) = object_in(root, "", "metadata")? else {
            return Ok(Self { object: None, annotations: None, labels: None });
        };
        Ok(Self {
            object: Some(object),
            annotations: object_in(object, "metadata", "annotations")?,
            labels: object_in(object, "metadata", "labels")?,
        })
    }

    pub(crate) fn name(&self) -> Result<Option<&'a str>, InjectError> {
        self.object.map_or(Ok(None), |object| text_in(object, "metadata", "name"))
    }

    pub(crate) fn label(&self, name: &str) -> Result<Option<&'a str>, InjectError> {
        self.labels.map_or(Ok(None), |labels| text_in(labels, "metadata.labels", name))
    }

    pub(crate) fn annotation(&self, name: &str) -> Result<Option<&'a str>, InjectError> {
        self.annotations.map_or(Ok(None), |annotations| text_in(annotations, "metadata.annotations", name))
    }
}

pub(crate) fn as_object<'a>(value: &'a Value, at: &str) -> Result<&'a Object, InjectError> {
    value.as_object().ok_or_else(|| InjectError::Malformed { at: at.to_owned(), expected: "an object" })
}

pub(crate) fn malformed(at: &str, key: &str, expected: &'static str) -> InjectError {
    let at = if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    InjectError::Malformed { at, expected }
}

pub(crate) fn object_in<'a>(parent: &'a Object, at: &str, key: &str) -> Result<Option<&'a Object>, InjectError> {
    member(parent, at, key, "an object", Value::as_object)
}

pub(crate) fn list_in<'a>(parent: &'a Object, at: &str, key: &str) -> Result<Option<&'a [Value]>, InjectError> {
    member(parent, at, key, "a list", |value| value.as_array().map(Vec::as_slice))
}

pub(crate) fn text_in<'a>(parent: &'a Object, at: &str, key: &str) -> Result<Option<&'a str>, InjectError> {
    member(parent, at, key, "a text", Value::as_str)
}

pub(crate) fn whole_number_in(parent: &Object, at: &str, key: &str) -> Result<Option<i64>, InjectError> {
    member(parent, at, key, "a whole number", Value::as_i64)
}

/// A flag that is absent is false, as it is for the API server.
pub(crate) fn flag_in(parent: &Object, at: &str, key: &str) -> Result<bool, InjectError> {
    Ok(member(parent, at, key, "true or false", Value::as_bool)?.unwrap_or(false))
}

/// The member `key` as `read` understands it. `null` counts as absent, as it does for the API server.
fn member<'a, T>(
    parent: &'a Object,
    at: &str,
    key: &str,
    expected: &'static str,
    read: impl Fn(&'a Value) -> Option<T>,
) -> Result<Option<T>, InjectError> {
    match parent.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => read(value).map(Some).ok_or_else(|| malformed(at, key, expected)),
    }
}
