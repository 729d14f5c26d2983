//! Connections that begin with anything, and requests that claim any of them.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use rvm_fuzz_input::Decisions;
use rvm_protocol::agent::Stdio;

use super::*;

/// The most connections and claims of one input, more than may wait.
const MAX_ACTS: usize = 400;

/// Opens and closes connections, claims them for processes and reads documents, as the bytes
/// decide. Nothing is kept of what has ended, and no more waits than may.
pub async fn connections(decisions: &mut Decisions<'_>) {
    let hub = StreamHub::default();
    let (mut opened, mut tasks, mut claims) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..MAX_ACTS {
        if decisions.are_over() {
            break;
        }
        match decisions.choose(6) {
            0 | 1 => {
                let (mut host, guest) = UnixStream::pair().unwrap();
                let id = u64::from(decisions.choose(8));
                let hello = [id.to_be_bytes().as_slice(), &decisions.bytes()].concat();
                let cut = hello.len().min(decisions.u8().into());
                let _ = host.write_all(&hello[..cut]);
                tasks.push(tokio::spawn(hub.clone().receive(guest.into())));
                opened.push(host);
            }
            2 => claims.extend(hub.claim(decisions.choose(8).into())),
            3 => {
                let (hub, id) = (hub.clone(), decisions.choose(8).into());
                tasks.push(tokio::spawn(async move { drop(hub.document(id).await) }));
            }
            4 => drop(prepare(&hub, &StreamIds::from(&stdio(decisions)))),
            _ => {
                opened.clear();
                claims.clear();
            }
        }
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        let halves = hub.lock();
        assert!(halves.connections <= MAX_UNPAIRED);
        let waiting = |half: &&Half| matches!(half, Half::Connection { .. });
        assert_eq!(
            halves.by_id.values().filter(waiting).count(),
            halves.connections
        );
    }
    drop(opened);
    drop(claims);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    for task in tasks {
        let _ = task.await;
    }
    let halves = hub.lock();
    let claimed = |half: &Half| matches!(half, Half::Process(_));
    assert!(
        !halves.by_id.values().any(claimed),
        "a claim that was dropped is gone"
    );
}

/// A process's streams, with more descriptors than it may have, too.
fn stdio(decisions: &mut Decisions<'_>) -> Stdio {
    let mut stdio = Stdio::new();
    stdio.stdin = decisions.choose(8).into();
    stdio.stdout = decisions.choose(8).into();
    stdio.terminal = decisions.choose(4) == 0;
    stdio.rows = decisions.u32();
    stdio.extra = vec![Default::default(); decisions.choose(80).into()];
    stdio
}
