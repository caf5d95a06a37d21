//! What every parser of hostile bytes promises, as functions of the bytes. They panic where a promise is broken, whoever calls
//! them: libFuzzer by `fuzz/fuzz_targets`, or the test below with the seeds.

mod admission;
mod certificates;
mod chains;
mod dns;
mod first_bytes;
mod http1;
mod http2;
mod link;
mod manifest;
mod names;
mod path;
mod policies;
mod tokens;
mod trace;

pub use admission::admission;
pub use certificates::{csr, leaf};
pub use chains::chain;
pub use dns::dns;
pub use first_bytes::{client_hello, detect};
pub use http1::http1;
pub use http2::http2;
pub use link::link;
pub use manifest::manifest;
pub use names::spiffe;
pub use path::path;
pub use policies::policy;
pub use tokens::{jwks, jwt};
pub use trace::trace;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 17] = [
        ("admission", super::admission),
        ("chain", super::chain),
        ("client_hello", super::client_hello),
        ("csr", super::csr),
        ("detect", super::detect),
        ("dns", super::dns),
        ("http1", super::http1),
        ("http2", super::http2),
        ("jwks", super::jwks),
        ("jwt", super::jwt),
        ("leaf", super::leaf),
        ("link", super::link),
        ("manifest", super::manifest),
        ("trace", super::trace),
        ("path", super::path),
        ("policy", super::policy),
        ("spiffe", super::spiffe),
    ];

    #[test]
    fn every_target_takes_its_seeds() {
        let room = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        for (name, target) in TARGETS {
            let seeds = fs::read_dir(room.join("seeds").join(name)).expect("every target has seeds");
            let mut count = 0;
            for path in seeds.map(|seed| seed.expect("the directory can be read").path()) {
                // Shown if the target panics.
                eprintln!("{}", path.display());
                target(&fs::read(&path).expect("a seed can be read"));
                count += 1;
            }
            assert!(count > 0, "{name} has no seed");
        }
        let programs = fs::read_dir(room.join("fuzz_targets")).expect("the targets' programs").count();
        assert_eq!(programs, TARGETS.len(), "a target without its row here is not tested with its seeds");
    }
}
