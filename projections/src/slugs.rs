//! Every slug that an organization has or had: an old one still resolves to it. Read by `resolve` alone.

use std::collections::BTreeSet;

use orgstream_events::{OrganizationEvent, Slug};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{DbError, convert::column, read_model::ReadModel};

pub(crate) const TABLE: ReadModel = ReadModel::by_text("slugs", "rm.slugs", "slug COLLATE \"C\"", &["slug"]);

#[derive(Default)]
pub(crate) struct Changeset<'a> {
    slugs: BTreeSet<&'a Slug>,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, event: &'a OrganizationEvent) {
        match event {
            OrganizationEvent::Created(event) => {
                self.slugs.insert(&event.slug);
            }
            OrganizationEvent::Renamed(event) => {
                self.slugs.insert(&event.slug);
            }
            OrganizationEvent::SettingsChanged(_)
            | OrganizationEvent::Suspended(_)
            | OrganizationEvent::Resumed(_)
            | OrganizationEvent::PlanChanged(_)
            | OrganizationEvent::LimitsChanged(_)
            | OrganizationEvent::Upgraded(_)
            | OrganizationEvent::IdentityLinked(_)
            | OrganizationEvent::DeletionRequested(_)
            | OrganizationEvent::DeletionCancelled(_)
            | OrganizationEvent::Sealed(_) => {}
        }
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        if self.slugs.is_empty() {
            return Ok(());
        }
        let slugs: Vec<&Slug> = self.slugs.into_iter().collect();
        sqlx::query!(
            "INSERT INTO rm.slugs (org_id, slug) SELECT $1, unnest($2::text[]) ON CONFLICT DO NOTHING",
            org,
            column(&slugs, |slug| slug.as_str()) as _,
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}
