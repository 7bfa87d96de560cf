//! The passwords of the program's logins: one for each, or one for all on a machine without other users.

use std::{collections::BTreeMap, fmt, str::FromStr};

/// The logins that `orgstream migrate` makes. Their rights are in the migrations.
pub(crate) const LOGINS: [&str; 7] =
    ["app_rw", "app_ro", "app_public", "app_audit", "app_sign", "app_identity", "app_eraser"];

/// The password of one login, in the form of settings: `LOGIN=TEXT`.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginPassword {
    login: &'static str,
    password: String,
}

/// The reason why a text is no password of a login. It repeats nothing of the text, which contains a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no password of a login: write LOGIN=TEXT with one of {}", LOGINS.join(", "))]
pub struct LoginPasswordError;

impl FromStr for LoginPassword {
    type Err = LoginPasswordError;

    fn from_str(text: &str) -> Result<Self, LoginPasswordError> {
        let (login, password) = text.split_once('=').ok_or(LoginPasswordError)?;
        let login = LOGINS.into_iter().find(|known| *known == login).ok_or(LoginPasswordError)?;
        if password.is_empty() { Err(LoginPasswordError) } else { Ok(Self { login, password: password.to_owned() }) }
    }
}

impl fmt::Debug for LoginPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginPassword").field("login", &self.login).finish_non_exhaustive()
    }
}

/// The passwords that a process was given. It needs those of the logins that it uses, and no others.
#[derive(Clone, Default)]
pub struct Passwords {
    shared: Option<String>,
    own: BTreeMap<&'static str, String>,
}

impl Passwords {
    /// Makes a set in which `shared` is for every login that has none of its own.
    pub fn new(shared: Option<String>, own: impl IntoIterator<Item = LoginPassword>) -> Self {
        Self { shared, own: own.into_iter().map(|LoginPassword { login, password }| (login, password)).collect() }
    }

    pub(crate) fn of(&self, login: &str) -> Option<&str> {
        self.own.get(login).or(self.shared.as_ref()).map(String::as_str)
    }
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").field("of", &self.own.keys()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_has_its_own_password_before_the_one_for_all() {
        let own = ["app_ro=a=b".parse().unwrap(), "app_sign=c".parse().unwrap()];
        let passwords = Passwords::new(Some("shared".to_owned()), own);
        let told = |login| passwords.of(login);
        assert_eq!([told("app_rw"), told("app_ro"), told("app_sign")], [Some("shared"), Some("a=b"), Some("c")]);
        assert_eq!(Passwords::default().of("app_rw"), None);
        assert!(!format!("{passwords:?}").contains("a=b"));
    }

    #[test]
    fn what_is_no_password_of_a_login_is_refused_without_repeating_it() {
        for wrong in ["app_owner=secret", "secret", "app_ro="] {
            let said = wrong.parse::<LoginPassword>().unwrap_err().to_string();
            assert!(!said.contains("secret") && said.contains("app_ro"), "{said}");
        }
    }
}
