//! What may become of a pod after its creation: no change gives it what its creation would have been refused.
//!
//! Only what a change touches is looked at. A pod that was admitted under other rules keeps what it has: its labels, its
//! finalizers and its image can still be changed.

use serde_json::Value;
use weft_core::wellknown::SIDECAR_CONTAINER;

use crate::error::{InjectError, excerpt};
use crate::manifest::{Container, Object, Pod, as_object, malformed, text_in};
use crate::names::{ANNOTATION_REDIRECT, REDIRECT_CONTAINER, VERIFY_CONTAINER};
use crate::options::{InjectorOptions, NamespaceFacts};
use crate::{genuine, guard};

/// What of a container that is not ours the guard reads.
const GUARDED: [&str; 4] = ["securityContext", "ports", "volumeMounts", "targetContainerName"];
/// What of a container of ours may change; for the image, see [`genuine::image`].
const FREE: [&str; 2] = ["image", "resources"];

/// Refuses the change of a pod from `old` to `new` that would take it round the mesh. `find` says what the namespace allows; it is
/// asked only where that matters.
pub(crate) fn check(
    old: &Value,
    new: &Value,
    options: &InjectorOptions,
    find: impl FnOnce() -> Result<NamespaceFacts, InjectError>,
) -> Result<(), InjectError> {
    let (old, new) = (Pod::parse(old)?, Pod::parse(new)?);
    let meshed = old.container(SIDECAR_CONTAINER).is_some();
    let mut added = Vec::new();
    for container in &new.containers {
        let ours = [SIDECAR_CONTAINER, REDIRECT_CONTAINER, VERIFY_CONTAINER].contains(&container.name);
        let before = old.containers.iter().find(|one| one.name == container.name && one.list() == container.list());
        match before {
            Some(before) if before.object == container.object => {}
            Some(before) if ours && meshed => still_ours(before, container, options)?,
            // Whatever it is: it is no sidecar, and must not be taken for one.
            None if ours => return Err(forged(container, "it was put in after the pod was made")),
            Some(before) if GUARDED.iter().all(|key| before.object.get(*key) == container.object.get(*key)) => {}
            _ => added.push(container),
        }
    }
    if !meshed {
        return Ok(());
    }
    let redirect = |pod: &Pod<'_>| pod.metadata.annotation(ANNOTATION_REDIRECT).map(|text| text.map(str::to_owned));
    let now = redirect(&new)?;
    if redirect(&old)? != now {
        let why = "it is the injector's, and stays as it was when the pod was made".to_owned();
        let value = excerpt(&now.unwrap_or_default());
        return Err(InjectError::Annotation { on: "the pod".to_owned(), name: ANNOTATION_REDIRECT, value, why });
    }
    if added.is_empty() {
        return Ok(());
    }
    let namespace = find()?;
    added.into_iter().try_for_each(|container| guard::added(container, &namespace))
}

/// A container of ours has its image changed within its repository, and its resources, and nothing else.
fn still_ours(before: &Container<'_>, container: &Container<'_>, options: &InjectorOptions) -> Result<(), InjectError> {
    let fixed = |container: &Container<'_>| {
        let mut object = container.object.clone();
        object.retain(|key, _| !FREE.contains(&key.as_str()));
        object
    };
    if fixed(before) != fixed(container) {
        return Err(forged(container, "more than its image and resources were changed"));
    }
    let ours = if container.name == SIDECAR_CONTAINER { &options.sidecar_image } else { &options.redirect_image };
    let earlier = text_in(before.object, &before.at, "image")?.unwrap_or_default();
    // The mesh may have moved to another registry since the pod was made.
    match genuine::image(container, ours)? {
        Some(_) if genuine::image(container, earlier)?.is_none() => Ok(()),
        Some(why) => Err(InjectError::Forged { at: container.said(), why }),
        None => Ok(()),
    }
}

fn forged(container: &Container<'_>, why: &str) -> InjectError {
    InjectError::Forged { at: container.said(), why: why.to_owned() }
}

/// The pod before a change and after it, as a review's `request` has them.
pub(crate) fn both(request: &Object) -> Result<(&Value, &Value), InjectError> {
    let one = |key: &str| {
        let found = request.get(key).ok_or_else(|| malformed("request", key, "a pod"))?;
        as_object(found, &format!("request.{key}")).map(|_| found)
    };
    Ok((one("oldObject")?, one("object")?))
}
