//! rvm's command line, as a library for the program itself and for the one that writes its manual
//! pages and shell completions.

pub mod cli;
