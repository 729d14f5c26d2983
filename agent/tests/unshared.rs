//! A guest that cannot mount its host's directory.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod support;

use support::{context, message};

#[tokio::test]
async fn a_directory_that_cannot_be_mounted_is_an_error_of_check() {
    let Some(guest) = support::unshared_guest("another").await else {
        return eprintln!("skipped: see above for what is missing");
    };
    for _ in 0..2 {
        let failure = message(guest.agent.check(context(), &Default::default()).await);
        assert_eq!(
            failure,
            "mount the host's directory: mount virtiofs rvm on /run/rvm/shared: invalid argument"
        );
    }
}
