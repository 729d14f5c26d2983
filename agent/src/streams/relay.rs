//! Copying between a process and its connection, with ends and backpressure in both directions.

use std::sync::Arc;

use super::endpoint::Endpoint;

/// Bytes per read: a pipe's default capacity, so that one read empties it.
const BUFFER_SIZE: usize = 64 * 1024;

/// From a process's standard output or error to the host.
///
/// If the host does not read, the copy stops, the pipe fills, and the process waits. When the last
/// writing end of the pipe is closed, the connection ends. When the host closes the connection, the
/// pipe is closed and the process gets SIGPIPE.
pub async fn output(pipe: Endpoint, connection: Endpoint) {
    copy(&pipe, &connection).await;
    connection.finish_writing();
}

/// From the host to a process's standard input.
///
/// When the process closes its end, the connection is closed, so that the host stops sending.
pub async fn input(connection: Endpoint, pipe: Endpoint) {
    tokio::select! {
        () = copy(&connection, &pipe) => {}
        () = pipe.reader_closed() => {}
    }
}

/// Between the master of a terminal and the host, both ways.
///
/// The end of the process's output ends both directions; the end of the host's input only that one,
/// unless the host has closed the connection: then the terminal hangs up.
pub async fn terminal(master: Arc<Endpoint>, connection: Endpoint) {
    let input = async {
        copy(&connection, &master).await;
        if !connection.peer_is_gone() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = copy(&master, &connection) => connection.finish_writing(),
        () = input => {}
    }
}

/// Between a process's socket and the host; each direction ends on its own.
pub async fn socket(ours: Endpoint, connection: Endpoint) {
    tokio::join!(one_way(&ours, &connection), one_way(&connection, &ours));
}

/// Copies to the end and passes the end on. If `from` is closed altogether, both sockets are shut
/// down, so that the other direction ends too.
async fn one_way(from: &Endpoint, to: &Endpoint) {
    copy(from, to).await;
    to.finish_writing();
    if from.peer_is_gone() {
        from.finish();
        to.finish();
    }
}

/// Reads a terminal without a connection, so that its writers do not wait for ever.
pub async fn discard(master: Arc<Endpoint>) {
    let mut buffer = vec![0; BUFFER_SIZE];
    while master.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

async fn copy(from: &Endpoint, to: &Endpoint) {
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => {
                if let Err(error) = to.write_all(&buffer[..count]).await {
                    return log::debug!("a stream's reader is gone: {error}");
                }
            }
            Err(error) => return log::debug!("a stream broke off: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn pipe() -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd) {
        pipe_with(PipeFlags::CLOEXEC).unwrap()
    }

    #[tokio::test]
    async fn what_was_written_before_the_exit_arrives_and_then_the_end() {
        let (reader, writer) = pipe();
        let (host, guest) = UnixStream::pair().unwrap();
        std::fs::File::from(writer).write_all(&[7; 50_000]).unwrap();
        let relay = output(
            Endpoint::new(reader).unwrap(),
            Endpoint::new(guest.into()).unwrap(),
        );
        let reading = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            let mut host = host;
            host.read_to_end(&mut all).unwrap();
            all
        });
        relay.await;
        assert_eq!(reading.await.unwrap(), vec![7; 50_000]);
    }

    #[tokio::test]
    async fn a_slow_host_gets_everything() {
        const LENGTH: usize = 20_000_000;
        let (reader, writer) = pipe();
        let (mut host, guest) = UnixStream::pair().unwrap();
        let writing = tokio::task::spawn_blocking(move || {
            std::fs::File::from(writer)
                .write_all(&vec![7; LENGTH])
                .unwrap();
        });
        let reading = tokio::task::spawn_blocking(move || {
            let (mut total, mut buffer) = (0, vec![0; 300_000]);
            loop {
                match host.read(&mut buffer).unwrap() {
                    0 => return total,
                    count => total += count,
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        output(
            Endpoint::new(reader).unwrap(),
            Endpoint::new(guest.into()).unwrap(),
        )
        .await;
        writing.await.unwrap();
        assert_eq!(reading.await.unwrap(), LENGTH);
    }

    #[tokio::test]
    async fn the_hosts_end_of_input_closes_the_pipe() {
        let (reader, writer) = pipe();
        let (mut host, guest) = UnixStream::pair().unwrap();
        host.write_all(b"hello").unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        input(
            Endpoint::new(guest.into()).unwrap(),
            Endpoint::new(writer).unwrap(),
        )
        .await;
        let mut all = String::new();
        std::fs::File::from(reader)
            .read_to_string(&mut all)
            .unwrap();
        assert_eq!(all, "hello");
    }

    #[tokio::test]
    async fn a_socket_is_half_closed_on_either_side() {
        let (mut process, ours) = UnixStream::pair().unwrap();
        let (mut host, guest) = UnixStream::pair().unwrap();
        let relay = tokio::spawn(socket(
            Endpoint::new(ours.into()).unwrap(),
            Endpoint::new(guest.into()).unwrap(),
        ));
        let talk = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            host.write_all(b"question").unwrap();
            host.shutdown(std::net::Shutdown::Write).unwrap();
            process.read_to_string(&mut text).unwrap();
            process.write_all(b" and answer").unwrap();
            drop(process);
            host.read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(talk.await.unwrap(), "question and answer");
        relay.await.unwrap();
    }

    #[tokio::test]
    async fn a_process_that_closes_its_socket_ends_the_connection() {
        let (process, ours) = UnixStream::pair().unwrap();
        let (mut host, guest) = UnixStream::pair().unwrap();
        drop(process);
        let relay = socket(
            Endpoint::new(ours.into()).unwrap(),
            Endpoint::new(guest.into()).unwrap(),
        );
        relay.await;
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
        assert!(host.write_all(b"x").is_err());
    }

    #[tokio::test]
    async fn a_process_that_closes_its_input_closes_the_connection() {
        let (reader, writer) = pipe();
        let (mut host, guest) = UnixStream::pair().unwrap();
        let relay = tokio::spawn(input(
            Endpoint::new(guest.into()).unwrap(),
            Endpoint::new(writer).unwrap(),
        ));
        tokio::task::yield_now().await;
        drop(reader);
        relay.await.unwrap();
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_host_that_goes_away_breaks_the_pipe() {
        let (reader, writer) = pipe();
        let (host, guest) = UnixStream::pair().unwrap();
        drop(host);
        let mut writer = std::fs::File::from(writer);
        writer.write_all(b"lost").unwrap();
        output(
            Endpoint::new(reader).unwrap(),
            Endpoint::new(guest.into()).unwrap(),
        )
        .await;
        assert_eq!(
            writer.write_all(b"x").unwrap_err().kind(),
            std::io::ErrorKind::BrokenPipe
        );
    }
}
