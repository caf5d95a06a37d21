//! Whether what bears our names in a pod was made by us: a pod that claims to have its sidecar already is not asked for anything else.

use serde_json::Value;
use weft_core::wellknown::{SIDECAR_CONTAINER, SIDECAR_UID};

use crate::error::{InjectError, excerpt};
use crate::manifest::{Container, Pod, flag_in, list_in, object_in, text_in, whole_number_in};
use crate::names::{ANNOTATION_REDIRECT, REDIRECT_CONTAINER, VERIFY_ARGUMENTS, VERIFY_CONTAINER};
use crate::options::{InjectorOptions, Redirect};
use crate::parts::redirect_arguments;
use crate::settings::Settings;

/// Refuses a pod with a container that bears one of our names and does not what we would have it do. Versions may differ: what is
/// compared is what the mesh rests on.
pub(crate) fn check(pod: &Pod<'_>, settings: &Settings, options: &InjectorOptions) -> Result<(), InjectError> {
    is_redirected(pod, settings, options)?;
    for (name, image) in [
        (SIDECAR_CONTAINER, &options.sidecar_image),
        (REDIRECT_CONTAINER, &options.redirect_image),
        (VERIFY_CONTAINER, &options.redirect_image),
    ] {
        let mut found = pod.containers.iter().filter(|c| c.name == name);
        let Some(container) = found.next() else { continue };
        let wrong = match found.next() {
            Some(second) => Some(format!("{} has the same name", second.at)),
            None => match self::image(container, image)? {
                None if name == SIDECAR_CONTAINER => sidecar(container)?,
                None if name == VERIFY_CONTAINER => verify(container, settings)?,
                None => redirect(container, settings)?,
                wrong => wrong,
            },
        };
        if let Some(why) = wrong {
            return Err(InjectError::Forged { at: container.said(), why });
        }
    }
    Ok(())
}

/// What is wrong with the image of a container that should run some version of `ours`.
pub(crate) fn image(container: &Container<'_>, ours: &str) -> Result<Option<String>, InjectError> {
    let image = text_in(container.object, &container.at, "image")?.unwrap_or_default();
    Ok((repository(image) != repository(ours)).then(|| format!("its image is not {}", repository(ours))))
}

/// With the plugin, a pod may still redirect itself; without it, only that is a redirect.
fn is_redirected(pod: &Pod<'_>, settings: &Settings, options: &InjectorOptions) -> Result<(), InjectError> {
    let has = |name: &str| pod.container(name).is_some();
    let why = if has(REDIRECT_CONTAINER) {
        return Ok(());
    } else if options.redirect == Redirect::Init {
        "the container that redirects its traffic is missing".to_owned()
    } else if !has(VERIFY_CONTAINER) {
        format!("the container {VERIFY_CONTAINER:?} is missing, which proves its redirect")
    } else if pod.metadata.annotation(ANNOTATION_REDIRECT)? != Some(redirect_arguments(&settings.skips).join(" ").as_str()) {
        format!("its annotation {ANNOTATION_REDIRECT} is not what its options come to")
    } else {
        return Ok(());
    };
    Err(InjectError::Forged { at: format!("a pod with a {SIDECAR_CONTAINER:?}"), why })
}

fn sidecar(container: &Container<'_>) -> Result<Option<String>, InjectError> {
    let uid = match container.security {
        Some(security) => whole_number_in(security, &container.at, "runAsUser")?,
        None => None,
    };
    Ok(if !runs(container, "weft-sidecar") || !words(container, "args")?.is_empty() {
        Some("it runs something else".to_owned())
    } else if uid != Some(i64::from(SIDECAR_UID)) {
        Some(format!("it does not run as user {SIDECAR_UID}"))
    } else {
        has_powers(container, &[])?
    })
}

fn redirect(container: &Container<'_>, settings: &Settings) -> Result<Option<String>, InjectError> {
    let args = words(container, "args")?;
    let flags: Vec<&str> = args.iter().skip(1).copied().filter(|arg| !arg.starts_with("--verify")).collect();
    Ok(if !container.at.starts_with("spec.initContainers") || container.object.contains_key("restartPolicy") {
        Some("it is not an init container that ends".to_owned())
    } else if !runs(container, "weft-redirect") || args.first() != Some(&"apply") {
        Some("it runs something else".to_owned())
    } else if flags != redirect_arguments(&settings.skips) {
        Some("it skips what the pod's annotations do not".to_owned())
    } else if let Some(why) = environment(container)? {
        Some(why)
    } else {
        has_powers(container, &[crate::guard::NET_ADMIN])?
    })
}

fn verify(container: &Container<'_>, settings: &Settings) -> Result<Option<String>, InjectError> {
    let args = words(container, "args")?;
    let flags = args.strip_prefix(&VERIFY_ARGUMENTS);
    Ok(if !container.at.starts_with("spec.initContainers") || container.object.contains_key("restartPolicy") {
        Some("it is not an init container that ends".to_owned())
    } else if !runs(container, "weft-redirect") || flags.is_none() {
        Some("it runs something else".to_owned())
    } else if flags.is_some_and(|flags| flags != redirect_arguments(&settings.skips)) {
        Some("it skips what the pod's annotations do not".to_owned())
    } else if let Some(why) = environment(container)? {
        Some(why)
    } else {
        has_powers(container, &[])?
    })
}

/// What is wrong with the environment of a container that redirects or proves it. The program takes every argument from there too, and
/// its loader and packet filter say by it what else runs. Other variables are let be: some clusters put theirs into every container.
fn environment(container: &Container<'_>) -> Result<Option<String>, InjectError> {
    const OURS: [&str; 3] = ["WEFT_", "LD_", "XTABLES_"];
    if !list_in(container.object, &container.at, "envFrom")?.unwrap_or_default().is_empty() {
        return Ok(Some("it takes its environment from elsewhere (envFrom)".to_owned()));
    }
    let variables = list_in(container.object, &container.at, "env")?.unwrap_or_default();
    let names = variables.iter().map(|variable| variable.get("name").and_then(Value::as_str).unwrap_or_default());
    let wrong = names.into_iter().find(|name| *name == "PATH" || OURS.iter().any(|prefix| name.starts_with(prefix)));
    Ok(wrong.map(|name| format!("its environment has {}, which changes what it does", excerpt(name))))
}

fn runs(container: &Container<'_>, program: &str) -> bool {
    container.object.get("command").and_then(Value::as_array).is_some_and(|words| words.len() == 1 && words[0] == program)
}

fn words<'a>(container: &Container<'a>, key: &str) -> Result<Vec<&'a str>, InjectError> {
    let list = list_in(container.object, &container.at, key)?.unwrap_or_default();
    Ok(list.iter().map(|word| word.as_str().unwrap_or_default()).collect())
}

fn has_powers(container: &Container<'_>, allowed: &[&str]) -> Result<Option<String>, InjectError> {
    let Some(security) = container.security else { return Ok(None) };
    if flag_in(security, &container.at, "privileged")? || flag_in(security, &container.at, "allowPrivilegeEscalation")? {
        return Ok(Some("it is privileged".to_owned()));
    }
    let Some(capabilities) = object_in(security, &container.at, "capabilities")? else { return Ok(None) };
    let added = list_in(capabilities, &container.at, "add")?.unwrap_or_default();
    let more = added.iter().any(|c| !allowed.iter().any(|a| *c == **a));
    Ok(more.then(|| "it has more capabilities than it needs".to_owned()))
}

/// An image without its tag and digest.
fn repository(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => image,
    }
}
