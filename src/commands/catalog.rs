//! Publishing items of the catalog, and choosing among them: what has to be found out in the log before it is decided.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use orgstream_domain::{
    ChooseCatalogItem, FieldError, PublishCatalogItem,
    annotations::NamedReference,
    catalog_choices::{CatalogChoiceCommand, CatalogChoices},
    catalog_item::{CatalogItem, CatalogItemCommand, Draft},
    record::Record,
    schema::ValidatedKind,
};
use orgstream_events::{
    AggregateId, Event, KindName, PLATFORM_ORG, RecordAppended, RecordCreated, RecordEvent, RecordId, RecordUpdated,
    cause,
};
use orgstream_stream::{Freshness, Placement};

use super::{
    handler::{CommandContext, CommandHandler, Target},
    request::{Accepted, CommandError},
};

/// The number of references of one draft that are looked up at the same time.
const AT_ONCE: usize = 8;

impl CommandHandler {
    /// Publishes the platform's record as it is in the log now.
    pub(super) async fn publish_catalog_item(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: PublishCatalogItem,
    ) -> Result<Accepted, CommandError> {
        let known = self.aggregates.look::<CatalogItem>(to.placement, &to.aggregate).await?;
        if let Some(accepted) = self.aggregates.earlier(attempt, to.placement, &to.aggregate, &known).await? {
            return Ok(accepted);
        }
        let draft = self.draft(to.placement, command.id).await?;
        if let (Some(expected), Some(draft)) = (command.record_version, &draft)
            && expected != draft.version
        {
            return Err(CommandError::VersionConflict { expected, actual: draft.version });
        }
        let kind = match &draft {
            Some(draft) => self.kind(to.placement.org, &draft.kind).await?,
            None => None,
        };
        let unpublished = match (&draft, &kind) {
            (Some(draft), Some(kind)) => self.unpublished(to.placement, kind, draft).await?,
            _ => Vec::new(),
        };
        let draft = draft.map(Arc::new);
        let publish = CatalogItemCommand::Publish { draft, kind, unpublished };
        self.execute::<CatalogItem>(attempt, to, publish).await
    }

    /// Pins or hides an item, if it is published.
    pub(super) async fn choose_catalog_item(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: ChooseCatalogItem,
    ) -> Result<Accepted, CommandError> {
        let is_published = self.catalog_item(command.id).await?.is_published();
        let choose = CatalogChoiceCommand::Choose { command, is_published };
        self.execute::<CatalogChoices>(attempt, to, choose).await
    }

    /// Whether a record of any organization may refer to the item, as one of this kind.
    pub(super) async fn is_in_catalog(&self, id: RecordId, kind: &KindName) -> Result<bool, CommandError> {
        Ok(self.catalog_item(id).await?.may_be_referred_to(kind))
    }

    async fn catalog_item(&self, id: RecordId) -> Result<CatalogItem, CommandError> {
        let placement = self.aggregates.placement(PLATFORM_ORG).await?;
        let found =
            self.aggregates.load::<CatalogItem>(&placement, &AggregateId::CatalogItem(id), Freshness::Leader).await?;
        Ok(found.state.clone())
    }

    /// Returns the record with its content, which its last commit has.
    async fn draft(&self, placement: &Placement, id: RecordId) -> Result<Option<Draft>, CommandError> {
        if id.appended_place().is_some() {
            let appended = self.appended_record(placement, id).await?;
            let draft = |RecordAppended { kind, kind_version, data, .. }| Draft {
                kind,
                kind_version,
                data,
                version: 1,
                archived: false,
            };
            return Ok(appended.map(draft));
        }
        let record = AggregateId::Record(id);
        let found = self.aggregates.load::<Record>(placement, &record, Freshness::Leader).await?;
        let Some(kind) = found.state.kind().cloned() else { return Ok(None) };
        let (version, archived) = (found.version, found.state.is_archived());
        let stored = self.log.commit_at(placement, &record, found.seq).await?;
        let (kind_version, data) = match stored.commit.events.into_iter().next_back().map(|opened| opened.event) {
            Some(Event::Record(
                RecordEvent::Created(RecordCreated { kind_version, data, .. })
                | RecordEvent::Updated(RecordUpdated { kind_version, data, .. }),
            )) => (kind_version, data),
            // One that is archived is refused whatever it has.
            Some(Event::Record(RecordEvent::Archived(_))) => (0, serde_json::Value::Null),
            Some(_) | None => {
                return Err(CommandError::Internal(cause("the last commit of a record has no event of it")));
            }
        };
        Ok(Some(Draft { kind, kind_version, data, version, archived }))
    }

    /// Returns the references of a draft to what is not in the catalog, and so not there for its readers.
    async fn unpublished(
        &self,
        placement: &Placement,
        kind: &ValidatedKind,
        draft: &Draft,
    ) -> Result<Vec<FieldError>, CommandError> {
        let named = match kind.annotations.references_in(&draft.data) {
            Ok(named) => named,
            Err(faults) => return Ok(faults),
        };
        let look = |NamedReference { pointer, id, kind, .. }: NamedReference| async move {
            let aggregate = AggregateId::CatalogItem(id);
            let found = self.aggregates.load::<CatalogItem>(placement, &aggregate, Freshness::Leader).await?;
            if found.state.may_be_referred_to(&kind) {
                return Ok::<_, CommandError>(None);
            }
            let detail = format!("the catalog has no item of the kind {kind} with this id");
            let pointer = format!("/data{pointer}");
            Ok(Some(FieldError { pointer, code: "reference_not_found".into(), detail }))
        };
        let found: Vec<_> = stream::iter(named).map(look).buffered(AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }
}
