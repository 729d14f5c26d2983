//! `regex-lite` under the name of `regex`, for oci-spec. It matches one field of config.json
//! (`execCPUAffinity`) with an expression, and with `regex` that makes the agent half a megabyte
//! larger, in every guest's memory. Nothing that rvm's programs match needs Unicode's classes.

pub use regex_lite::*;
