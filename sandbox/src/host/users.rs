//! The names of users, by /etc/passwd: a static program must not load the host's name services.

use std::collections::HashMap;

use rvm_sys::accounts::User;

/// What /etc/passwd said when it was read.
#[derive(Debug, Default)]
pub struct UserNames(HashMap<u32, String>);

impl UserNames {
    /// Reads /etc/passwd. Without one nobody has a name.
    pub fn load() -> Self {
        Self::parse(&std::fs::read_to_string("/etc/passwd").unwrap_or_default())
    }

    fn parse(passwd: &str) -> Self {
        let mut names = HashMap::new();
        for line in passwd.lines() {
            if let Some(user) = User::parse(line) {
                // The first of several is the one that others see.
                let name = || user.name.to_owned();
                names.entry(user.uid).or_insert_with(name);
            }
        }
        Self(names)
    }

    /// A user's name, or the number if there is none.
    pub fn name(&self, uid: u32) -> String {
        self.0.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_counts_and_a_missing_one_is_the_number() {
        let users = UserNames::parse("root:x:0:0::/:\ntoor:x:0:0::/:\nbroken\nweb:x:33:33::/:\n");
        assert_eq!(users.name(0), "root");
        assert_eq!(users.name(33), "web");
        assert_eq!(users.name(34), "34");
    }
}
