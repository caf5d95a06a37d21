//! Buffers of one worker, borrowed for the length of one turn: an idle connection owns none.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// The size of each, in bytes.
pub const BUFFER_SIZE: usize = 64 * 1024;
/// How many are kept when nobody borrows them.
const KEEP: usize = 8;

/// A worker's buffers. Cheap to clone.
#[derive(Clone, Default, Debug)]
pub struct Buffers(Rc<RefCell<Vec<Box<[u8]>>>>);

impl Buffers {
    /// Borrows one; its content is whatever was there before.
    pub fn take(&self) -> Buffer {
        let bytes = self.0.borrow_mut().pop().unwrap_or_else(|| vec![0; BUFFER_SIZE].into_boxed_slice());
        Buffer { bytes: Some(bytes), home: self.clone() }
    }
}

/// A borrowed buffer; dropping gives it back.
pub struct Buffer {
    bytes: Option<Box<[u8]>>,
    home: Buffers,
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.as_deref().expect("there until it is dropped")
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.as_deref_mut().expect("there until it is dropped")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut home = self.home.0.borrow_mut();
        if let (true, Some(bytes)) = (home.len() < KEEP, self.bytes.take()) {
            home.push(bytes);
        }
    }
}
