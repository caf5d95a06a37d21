use std::os::unix::fs::PermissionsExt;

use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::{ServerName, UnixTime};
use weft_tls::{PinnedAnchor, ServerVerifier, Svid, TrustBundle};

use super::super::super::ca::{Ca, Source};
use super::*;

fn domain() -> TrustDomain {
    "cluster.local".parse().expect("valid")
}

fn open(dir: &Path) -> Keep {
    let keep = Keep::open(dir, &domain()).expect("it opens").0;
    unlock(&keep);
    keep
}

/// Has others open the directory while this one is there.
#[allow(clippy::used_underscore_binding, reason = "nobody else has a use for the lock")]
fn unlock(keep: &Keep) {
    keep._lock.unlock().expect("it was locked");
}

/// Puts `state` on disk, and gives the CA as it starts over that.
fn restarted(keep: &mut Keep, state: State) -> Ca {
    keep.commit(state).expect("written");
    let ca = Ca::open(domain(), &Source::Kept(&keep.dir)).expect("it opens");
    unlock(&ca.keep().expect("it is kept"));
    ca
}

/// Whether somebody who has a token with this anchor takes the control plane for what it is.
fn pinned(svid: &Svid, anchor: &str) -> bool {
    let verifier = PinnedAnchor::new(weft_tls::provider(), anchor.to_owned());
    let (leaf, between) = svid.chain().split_first().expect("a chain");
    let name = ServerName::try_from("any.name").expect("a name");
    verifier.verify_server_cert(leaf, between, &name, &[], UnixTime::now()).is_ok()
}

/// Whether somebody who trusts the root of `authority` alone does.
fn trusted(svid: &Svid, authority: &Authority) -> bool {
    let bundle = TrustBundle::new(domain(), vec![authority.root().clone()]).expect("a root");
    let verifier = ServerVerifier::control_plane(weft_tls::provider(), Arc::new(bundle), domain());
    let (leaf, between) = svid.chain().split_first().expect("a chain");
    let name = ServerName::try_from("any.name").expect("a name");
    verifier.verify_server_cert(leaf, between, &name, &[], UnixTime::now()).is_ok()
}

#[test]
fn each_state_is_what_a_restart_begins_with_and_old_keys_go() {
    let home = tempfile::tempdir().expect("temporary directory");
    let dir = home.path().join("ca");
    let mut keep = open(&dir);
    let old = keep.state().current.clone();
    let new = keep.make(&domain()).expect("made");
    assert_ne!(old, new);
    let begun = keep.state().begin(new.clone(), 7).expect("nothing is under way");

    let ca = restarted(&mut keep, begun.clone());
    let hashes = |ca: &Ca| ca.now().bundle.hashes(&domain()).collect::<Vec<_>>();
    assert_eq!((ca.anchor_hash(), hashes(&ca)), (old.clone(), vec![old.clone(), new.clone()]));
    assert_eq!(ca.now().issuing.as_ref().map(|i| i.anchor.as_str()), Some(old.as_str()));
    assert_eq!(open(&dir).state(), &begun);

    let mut reissuing = begun;
    reissuing.next.as_mut().expect("under way").phase = super::super::rotation::Phase::Reissuing;
    let ca = restarted(&mut keep, reissuing);
    assert_eq!((ca.anchor_hash(), hashes(&ca).len()), (new.clone(), 2));
    let svid = ca.own_svid().expect("signed");
    let [first, second] = &keep.roots().authorities().cloned().collect::<Vec<_>>()[..] else { panic!("two roots") };
    assert!(pinned(&svid, &old) && pinned(&svid, &new), "tokens of both roots are good");
    assert!(trusted(&svid, first) && trusted(&svid, second), "who knows one root alone knows the control plane");
    assert!(!pinned(&svid, "00"));
    for entry in walk(&dir) {
        let (mode, wanted) =
            (entry.metadata().expect("there").permissions().mode() & 0o777, if entry.is_dir() { 0o700 } else { 0o600 });
        assert_eq!(mode, wanted, "{}", entry.display());
    }

    let ca = restarted(&mut keep, State::settled(new.clone()));
    assert_eq!((ca.anchor_hash(), hashes(&ca)), (new.clone(), vec![new.clone()]));
    assert!(ca.now().issuing.is_none());
    assert!(!pinned(&ca.own_svid().expect("signed"), &old), "the old root is gone");
    assert!(!dir.join("root.key").exists() && !dir.join("chain.pem").exists(), "and so are its keys");
    // Once more, from a root that a rotation made, and back.
    let third = keep.make(&domain()).expect("made");
    let begun = keep.state().begin(third.clone(), 8).expect("nothing is under way");
    assert_eq!(hashes(&restarted(&mut keep, begun)), [new.clone(), third]);
    assert_eq!(hashes(&restarted(&mut keep, State::settled(new.clone()))), [new]);
    assert_eq!(rotated_roots(&dir).count(), 1);
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    for entry in std::fs::read_dir(dir).expect("there").flatten() {
        let path = entry.path();
        if path.is_dir() { all.extend(walk(&path)) } else { all.push(path) }
    }
    all
}

#[test]
fn what_is_in_force_while_the_old_root_issues_is_good_for_tokens_of_the_new_one_too() {
    let home = tempfile::tempdir().expect("temporary directory");
    let mut keep = open(home.path());
    let (old, new) = (keep.state().current.clone(), keep.make(&domain()).expect("made"));
    let begun = keep.state().begin(new.clone(), 7).expect("nothing is under way");
    let svid = restarted(&mut keep, begun).own_svid().expect("signed");
    assert!(pinned(&svid, &old) && pinned(&svid, &new), "an abort leaves tokens of the new root good for a while");
}

#[test]
fn a_root_key_that_was_taken_away_is_no_hindrance() {
    let home = tempfile::tempdir().expect("temporary directory");
    let mut keep = open(home.path());
    std::fs::remove_file(home.path().join(ROOT_KEY)).expect("it was there");
    let new = keep.make(&domain()).expect("made");
    let mut begun = keep.state().begin(new.clone(), 7).expect("nothing is under way");
    begun.next.as_mut().expect("under way").phase = super::super::rotation::Phase::Reissuing;
    let svid = restarted(&mut keep, begun).own_svid().expect("signed");
    assert!(pinned(&svid, &new));
}

#[test]
fn what_nothing_names_is_removed_and_a_state_that_is_gone_is_never_begun_anew() {
    let home = tempfile::tempdir().expect("temporary directory");
    let mut keep = open(home.path());
    let abandoned = keep.make(&domain()).expect("made");
    let place = home.path().join(name(&abandoned));
    assert!(place.is_dir());
    drop(open(home.path()));
    assert!(!place.exists(), "the process ended before it was named");

    let new = keep.make(&domain()).expect("made");
    keep.commit(State::settled(new)).expect("written");
    std::fs::remove_file(home.path().join(STATE)).expect("it was there");
    let e = Keep::open(home.path(), &domain()).err().expect("refused");
    assert!(e.to_string().contains("trust.json") && e.to_string().contains("put the file back"), "{e}");
    std::fs::write(home.path().join(STATE), "{").expect("written");
    assert!(matches!(Keep::open(home.path(), &domain()), Err(CaError::State { .. })));
}

#[test]
fn one_control_plane_uses_a_directory_and_the_next_one_when_it_has_ended() {
    let home = tempfile::tempdir().expect("temporary directory");
    let (first, records) = Keep::open(home.path(), &domain()).expect("it opens");
    let before = std::fs::metadata(home.path().join(JOURNAL)).expect("there");
    let e = Keep::open(home.path(), &domain()).err().expect("refused").to_string();
    assert!(e.contains(&home.path().display().to_string()) && e.contains("another control plane"), "{e}");
    let after = std::fs::metadata(home.path().join(JOURNAL)).expect("there");
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&before), std::os::unix::fs::MetadataExt::ino(&after), "nothing was written");
    drop((first, records));
    Keep::open(home.path(), &domain()).expect("nobody uses it");
}

#[test]
fn a_root_that_was_made_in_vain_goes_at_once() {
    let home = tempfile::tempdir().expect("temporary directory");
    let keep = open(home.path());
    let vain = keep.make(&domain()).expect("made");
    let begun = keep.state().begin(vain.clone(), 7).expect("nothing is under way");
    std::fs::write(home.path().join(STATE), serde_json::to_vec(&begun).expect("text")).expect("written");
    keep.discard();
    assert!(home.path().join(name(&vain)).is_dir(), "the state on disk names it");
    std::fs::remove_file(home.path().join(STATE)).expect("there");
    keep.discard();
    assert!(!home.path().join(name(&vain)).exists());
}
