//! Lines of /etc/passwd, see passwd(5).
//!
//! The C library's getpwnam(3) is no choice for a static program: it loads the name service modules
//! of whatever root it runs in, an untrusted image's included.

/// A user, as far as a line of /etc/passwd has to be intact for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User<'line> {
    /// The login name.
    pub name: &'line str,
    /// The numeric user id.
    pub uid: u32,
    /// The home directory; `None` where the line has no such field or an empty one.
    pub home: Option<&'line str>,
}

impl<'line> User<'line> {
    /// Parses one line; `None` if it has no user id.
    pub fn parse(line: &'line str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let home = fields.nth(2).filter(|home| !home.is_empty());
        Some(Self { name, uid, home })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(line: &str, uid: u32) -> Option<&str> {
        User::parse(line)
            .filter(|user| user.uid == uid)
            .and_then(|user| user.home)
    }

    #[test]
    fn a_home_belongs_to_a_user_id() {
        let line = "www:x:33:33:web:/var/www:/bin/sh";
        assert_eq!(home(line, 33), Some("/var/www"));
        assert_eq!(home(line, 34), None);
        assert_eq!(home("broken:x:33", 33), None);
        assert_eq!(home("homeless:x:7:7::", 7), None);
    }

    #[test]
    fn a_line_without_a_user_id_is_no_user() {
        assert_eq!(User::parse("broken"), None);
        assert_eq!(User::parse("web:x:many:33::/:"), None);
        let web = User::parse("web:x:33").unwrap();
        assert_eq!((web.name, web.uid, web.home), ("web", 33, None));
    }
}
