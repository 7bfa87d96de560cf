//! Rebuilds the crate when a migration is added: `sqlx::migrate!` by itself only watches the files it already knows.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
