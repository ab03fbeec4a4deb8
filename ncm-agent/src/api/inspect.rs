//! The inspection service `ncm.v1`.
