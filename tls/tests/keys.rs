//! No private key stays in memory that was given back: the allocator keeps what blocks hold when they are freed, and that is searched.
#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};

use rcgen::{CertificateParams, IsCa, Issuer, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use weft_tls::{Key, PendingKey, Svid, key_der};
use zeroize::Zeroizing;

/// Bytes that are kept of freed blocks. One key and its certificate leave less than a tenth of that.
const ROOM: usize = 4 << 20;

/// What freed blocks held, one after another.
struct Graves(UnsafeCell<[u8; ROOM]>);

/// # Safety
///
/// One thread writes, and the same reads: the one that has `LENGTH`.
unsafe impl Sync for Graves {}

static GRAVES: Graves = Graves(UnsafeCell::new([0; ROOM]));

thread_local! {
    /// How much is kept, on the thread that digs.
    static LENGTH: Cell<Option<usize>> = const { Cell::new(None) };
}

struct Keeping;

#[global_allocator]
static ALLOCATOR: Keeping = Keeping;

unsafe impl GlobalAlloc for Keeping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let kept = LENGTH.try_with(Cell::get).ok().flatten();
        if let Some(length) = kept {
            let end = length + layout.size();
            assert!(end <= ROOM, "more room is needed");
            // SAFETY: the block is whole until it is freed below; the graves are this thread's.
            unsafe { std::ptr::copy_nonoverlapping(block, GRAVES.0.get().cast::<u8>().add(length), layout.size()) };
            LENGTH.set(Some(end));
        }
        unsafe { System.dealloc(block, layout) }
    }
}

/// Freed blocks of `of`, in which what it returns is not found.
fn leaves_nothing(what: &str, of: impl FnOnce() -> Vec<Vec<u8>>) {
    LENGTH.set(Some(0));
    let secrets = of();
    let length = LENGTH.replace(None).unwrap_or_default();
    // SAFETY: nobody writes there any more.
    let graves = unsafe { std::slice::from_raw_parts(GRAVES.0.get().cast::<u8>().cast_const(), length) };
    assert!(length > 0, "{what}: nothing was freed");
    for secret in secrets {
        assert!(secret.len() >= 32, "{what}: too short to be told from others");
        assert!(!graves.windows(secret.len()).any(|found| found == secret), "{what}: the key is in memory that was given back");
    }
}

/// The scalar of a P-256 key in PKCS#8, which is at the same place in every one.
fn scalar(der: &[u8]) -> Vec<u8> {
    der[36..68].to_vec()
}

/// A line in the middle of a key in PEM.
fn line(pem: &str) -> Vec<u8> {
    pem.lines().nth(1).expect("a line").as_bytes().to_vec()
}

#[test]
fn keys_are_overwritten_wherever_they_were() {
    // It tells: a key that is held bare is found.
    let bare = std::panic::catch_unwind(|| {
        leaves_nothing("a bare key", || vec![scalar(rcgen::KeyPair::generate().expect("a key").serialized_der())]);
    });
    LENGTH.set(None);
    assert!(bare.is_err(), "what is not overwritten is found");

    leaves_nothing("a new key", || {
        let key = Key::generate().expect("a key");
        let pem = key.pem();
        vec![scalar(key.der()), line(&pem)]
    });
    let text = Key::generate().expect("a key").pem();
    leaves_nothing("a key that was read", || {
        let key = Key::from_pem(&text).expect("the key");
        let der = key_der(text.as_bytes()).expect("the key");
        assert_eq!(*der, key.der());
        vec![scalar(key.der()), line(&text)]
    });
    leaves_nothing("a CA and what it signs", || {
        let key = Key::from_pem(&text).expect("the key");
        let secret = scalar(key.der());
        let params = CertificateParams::default();
        let certificate = params.self_signed(&key).expect("signed");
        let issuer = Issuer::from_ca_cert_der(certificate.der(), key).expect("an issuer");
        let leaf = Key::generate().expect("a key");
        CertificateParams::default().signed_by(&leaf, &issuer).expect("signed");
        vec![secret, scalar(leaf.der())]
    });
    leaves_nothing("a certificate for life", || {
        let key = PendingKey::generate().expect("a key");
        let id = "spiffe://cluster.local/ns/shop/sa/web".parse().expect("an identity");
        let request = key.request(&id).expect("a request");
        let mut request = rcgen::CertificateSigningRequestParams::from_der(&request.into()).expect("good");
        request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        request.params.is_ca = IsCa::ExplicitNoCa;
        let by = Key::generate().expect("a key");
        let by = Issuer::new(CertificateParams::default(), by);
        let leaf: CertificateDer<'static> = request.signed_by(&by).expect("signed").der().clone();
        let svid = key.with_chain(vec![leaf.clone()]).expect("they fit");
        drop(key);
        let again = Svid::new(vec![leaf], Zeroizing::new(svid.pkcs8().to_vec())).expect("they fit");
        vec![scalar(again.pkcs8())]
    });
}
