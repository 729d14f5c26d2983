//! rvm's command line, as a library for the rvm binary and for the example that writes its manual
//! pages and shell completions.

pub mod cli;
