//! HTTP/2's frames (RFC 9113) and sections: heads by way of HPACK (RFC 7541).

pub mod frame;
pub mod hpack;
mod huffman;
pub mod section;
