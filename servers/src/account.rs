//! The account PostgreSQL runs as. It refuses to run as root, so when this process is root it gets an account without
//! rights.

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

use crate::ServerError;

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// The account to change to: `postgres` if it exists, else `nobody`; none when this process is not root.
    pub(super) fn unprivileged() -> Result<Option<Self>, ServerError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").map_err(ServerError::io("read /etc/passwd"))?;
        let found = ["postgres", "nobody"].into_iter().find_map(|name| Self::find(&users, name));
        found.map(Some).ok_or_else(|| ServerError::Folder {
            path: "/etc/passwd".into(),
            problem:
                "neither the user postgres nor nobody is there, and PostgreSQL does not run as root: run orgstream \
                      as an ordinary user, or create the user postgres"
                    .to_owned(),
        })
    }

    fn find(users: &str, name: &str) -> Option<Self> {
        let fields: Vec<_> =
            users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|f| f.first() == Some(&name))?;
        let number = |at: usize| fields.get(at).and_then(|id| id.parse::<u32>().ok()).filter(|id| *id != 0);
        Some(Self { name: name.to_owned(), uid: number(2)?, gid: number(3)? })
    }

    /// Makes the account the owner of a file or folder.
    pub(super) fn own(&self, path: &Path) -> Result<(), ServerError> {
        let what = format!("give {} to the user {}", path.display(), self.name);
        chown(path, Some(self.uid), Some(self.gid)).map_err(ServerError::io(what))
    }

    /// Whether the account can enter a folder or run a program, with every folder on the way there.
    pub(super) fn reaches(&self, path: &Path) -> bool {
        let mut test = Command::new("test");
        test.arg("-x").arg(path).uid(self.uid).gid(self.gid).current_dir("/");
        test.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        test.status().is_ok_and(|status| status.success())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_read_by_its_name_and_never_root() {
        let users =
            "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65533::/:/bin/false\npostgres2:x:7:7::/:\nevil:x:0:0::/:\n";
        let nobody = Account { name: "nobody".to_owned(), uid: 65_534, gid: 65_533 };
        assert_eq!(Account::find(users, "nobody"), Some(nobody));
        assert_eq!(Account::find(users, "postgres"), None);
        assert_eq!(Account::find(users, "evil"), None);
    }
}
