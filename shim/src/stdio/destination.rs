//! The destination of a process's output: containerd gives the path of a FIFO, or a URI that names
//! a FIFO, a file or a logging program.

use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The output is discarded.
    Null,
    /// A FIFO, or another file that exists.
    Path(PathBuf),
    /// A file that the shim creates if need be and appends to.
    File(PathBuf),
    /// A program that reads the output, and its arguments.
    Binary(PathBuf, Vec<String>),
}

/// The scheme of a URI that names none of the destinations.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownScheme(pub String);

/// Parses a path or URI; an empty one is [`Destination::Null`].
pub fn parse(text: &str) -> Result<Destination, UnknownScheme> {
    if text.is_empty() {
        return Ok(Destination::Null);
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok(Destination::Path(text.into()));
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = PathBuf::from(decode(path, false));
    match scheme {
        "fifo" => Ok(Destination::Path(path)),
        "file" => Ok(Destination::File(path)),
        "binary" => Ok(Destination::Binary(path, arguments(query))),
        other => Err(UnknownScheme(other.to_owned())),
    }
}

/// The names and values of a query in their order: containerd passes them so to the program.
fn arguments(query: &str) -> Vec<String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let both = |pair: &str| match pair.split_once('=') {
        Some((name, value)) => vec![decode(name, true), decode(value, true)],
        None => vec![decode(pair, true), String::new()],
    };
    pairs.flat_map(both).collect()
}

/// Decodes `%XX`, and in a query `+` as a space.
fn decode(text: &str, in_query: bool) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hexadecimal(*high, *low),
            _ => None,
        };
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(if in_query && first == b'+' {
                    b' '
                } else {
                    first
                });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hexadecimal(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_destination_is_understood() {
        assert_eq!(parse(""), Ok(Destination::Null));
        let fifo = Destination::Path("/run/fifo/1".into());
        assert_eq!(parse("/run/fifo/1"), Ok(fifo));
        assert_eq!(parse("file:///a%20b"), Ok(Destination::File("/a b".into())));
        assert_eq!(
            parse("binary:///bin/log?--tag=a+b%2B&-q"),
            Ok(Destination::Binary(
                "/bin/log".into(),
                ["--tag", "a b+", "-q", ""].map(str::to_owned).to_vec()
            ))
        );
        let unknown = UnknownScheme("npipe".to_owned());
        assert_eq!(parse("npipe:////./pipe"), Err(unknown));
    }

    #[test]
    fn a_percent_sign_that_escapes_nothing_stands_for_itself() {
        let file = Destination::File("/100%/%zz".into());
        assert_eq!(parse("file:///100%/%zz"), Ok(file));
    }
}
