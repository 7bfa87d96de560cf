//! One item of the catalog: what the platform published of one of its records. A published version never changes; another
//! one is published, or the item is withdrawn.

use std::sync::Arc;

use orgstream_events::{
    AggregateId, AggregateType, CatalogItemEvent, CatalogItemPublished, CatalogItemWithdrawn, Event, KindName, OrgId,
    RecordId, Visibility,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Rejection, RejectionKind,
    Requires, Scope, grants::Grant, schema::ValidatedKind, text::Faults,
};

/// The state of an item. By default it was never published.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CatalogItem {
    kind: Option<KindName>,
    /// The newest version; 0 for none.
    item_version: u64,
    /// The version of the record that it was made of.
    record_version: u64,
    /// The earliest version that can be read.
    shown_since: u64,
    published: bool,
}

impl CatalogItem {
    /// Whether everybody can read it now.
    pub fn is_published(&self) -> bool {
        self.published
    }

    /// Whether a record may refer to it, as one of this kind.
    pub fn may_be_referred_to(&self, kind: &KindName) -> bool {
        self.published && self.kind.as_ref() == Some(kind)
    }
}

/// The record of the platform that an item is published from, as it is in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// Its kind.
    pub kind: KindName,
    /// The version of the kind's schema that its content was validated against.
    pub kind_version: u64,
    /// Its content.
    pub data: Value,
    /// Its version.
    pub version: u64,
    /// Whether it is archived.
    pub archived: bool,
}

/// The commands of an item.
#[derive(Debug, Clone)]
pub enum CatalogItemCommand {
    /// Publishes the draft.
    Publish {
        /// The draft, if there is one.
        draft: Option<Arc<Draft>>,
        /// Its kind.
        kind: Option<Arc<ValidatedKind>>,
        /// The references in the draft to records that are not published.
        unpublished: Vec<FieldError>,
    },
    /// Withdraws it.
    Withdraw(WithdrawCatalogItem),
}

/// A version of a catalog item that everybody can read: the platform's record as it is. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishCatalogItem {
    /// Record id of the platform's own record (`res_` and 26 characters), which the item has too.
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
    /// Version that the record must have, so that nothing is published but what was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 1)]
    pub record_version: Option<u64>,
}

impl Declared for PublishCatalogItem {
    const SPEC: CommandSpec = CommandSpec {
        name: "publish_catalog_item",
        requires: Requires::Permission(Permission::PublishCatalog),
        events: &["catalog_item.published"],
        creates: false,
        scope: Scope::Platform,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::CatalogItem(self.id))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Out of the catalog, with all its versions. The record stays. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WithdrawCatalogItem {
    /// Record id of the item (`res_` and 26 characters).
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
    /// Reason for the audit log, 1 to 500 characters.
    #[schema(max_length = 500)]
    pub reason: String,
}

impl Declared for WithdrawCatalogItem {
    const SPEC: CommandSpec = CommandSpec {
        name: "withdraw_catalog_item",
        requires: Requires::Permission(Permission::PublishCatalog),
        events: &["catalog_item.withdrawn"],
        creates: false,
        scope: Scope::Platform,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::CatalogItem(self.id))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

impl Aggregate for CatalogItem {
    type Command = CatalogItemCommand;
    type Event = CatalogItemEvent;
    type Error = CatalogItemError;
    const TYPE: AggregateType = AggregateType::CatalogItem;
    const SHAPE: u16 = 1;

    fn apply(&mut self, event: &CatalogItemEvent) {
        match event {
            CatalogItemEvent::Published(event) => {
                *self = Self {
                    kind: Some(event.kind.clone()),
                    item_version: event.item_version,
                    record_version: event.record_version,
                    shown_since: event.shown_since,
                    published: true,
                };
            }
            CatalogItemEvent::Withdrawn(_) => self.published = false,
        }
    }

    fn decide(
        &self,
        command: CatalogItemCommand,
        _: &DecisionContext,
    ) -> Result<Vec<CatalogItemEvent>, CatalogItemError> {
        match command {
            CatalogItemCommand::Publish { draft, kind, unpublished } => {
                let draft = draft.ok_or(CatalogItemError::NoDraft)?;
                let Draft { kind: name, kind_version, data, version, archived } = draft.as_ref();
                if *archived {
                    return Err(CatalogItemError::Archived);
                }
                let kind = match kind {
                    Some(kind) if kind.definition.visibility == Visibility::Private => {
                        return Err(CatalogItemError::PrivateKind(name.clone()));
                    }
                    Some(kind) if kind.retired => return Err(CatalogItemError::KindRetired(name.clone())),
                    Some(kind) => kind,
                    None => return Err(CatalogItemError::PrivateKind(name.clone())),
                };
                if self.published && self.record_version == *version {
                    return Ok(vec![]);
                }
                if !unpublished.is_empty() {
                    return Err(CatalogItemError::ReferenceNotPublished(unpublished));
                }
                let item_version = self.item_version + 1;
                Ok(vec![CatalogItemEvent::Published(CatalogItemPublished {
                    kind: name.clone(),
                    kind_version: *kind_version,
                    data: data.clone(),
                    item_version,
                    record_version: *version,
                    shown_since: if self.published { self.shown_since } else { item_version },
                    searched: kind.annotations.searched_fields(),
                })])
            }
            CatalogItemCommand::Withdraw(WithdrawCatalogItem { reason, .. }) => {
                if self.item_version == 0 {
                    return Err(CatalogItemError::NotFound);
                }
                if !self.published {
                    return Ok(vec![]);
                }
                let mut faults = Faults::default();
                faults.reason("/reason", &reason);
                faults.none_or(CatalogItemError::Invalid)?;
                Ok(vec![CatalogItemEvent::Withdrawn(CatalogItemWithdrawn { reason })])
            }
        }
    }

    fn wrap(event: CatalogItemEvent) -> Event {
        Event::CatalogItem(event)
    }

    fn event_of(event: &Event) -> Option<&CatalogItemEvent> {
        if let Event::CatalogItem(event) = event { Some(event) } else { None }
    }
}

/// The reasons why a command about an item is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogItemError {
    /// Fields are invalid.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
    /// The platform has no such record.
    #[error("the platform has no record of this id; create it in the platform's own organization first")]
    NoDraft,
    /// It was never published.
    #[error("no item of this id was ever published")]
    NotFound,
    /// The record is archived.
    #[error("the record is archived; publish another one")]
    Archived,
    /// The kind is not one of the catalog.
    #[error("the kind {0} is private, so its records cannot be published: change its visibility first")]
    PrivateKind(KindName),
    /// The kind is retired.
    #[error("the kind {0} is retired, so nothing more of it is published: restore it first")]
    KindRetired(KindName),
    /// The record refers to records that are not published.
    #[error("some records that it refers to are not in the catalog; publish them first, or take them out")]
    ReferenceNotPublished(Vec<FieldError>),
}

impl From<CatalogItemError> for Rejection {
    fn from(mut error: CatalogItemError) -> Self {
        let (kind, code) = match &mut error {
            CatalogItemError::Invalid(errors) => return Self::invalid(std::mem::take(errors)),
            CatalogItemError::ReferenceNotPublished(errors) => {
                let errors = std::mem::take(errors);
                return Self { errors, ..Self::new(RejectionKind::Invalid, "reference_not_found", error) };
            }
            CatalogItemError::NoDraft | CatalogItemError::NotFound => (RejectionKind::NotFound, "not_found"),
            CatalogItemError::Archived => (RejectionKind::Conflict, "record_archived"),
            CatalogItemError::PrivateKind(_) => (RejectionKind::Invalid, "kind_private"),
            CatalogItemError::KindRetired(_) => (RejectionKind::Invalid, "kind_retired"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::KindDefinition;
    use serde_json::json;

    use super::*;
    use crate::testing::{fields, given, rejection};

    fn id() -> RecordId {
        RecordId::fresh(1, [1; 10])
    }

    fn draft(version: u64) -> Draft {
        let kind = "model".parse().unwrap();
        Draft { kind, kind_version: 4, data: json!({"name": version}), version, archived: false }
    }

    fn kind(visibility: Visibility, retired: bool) -> Arc<ValidatedKind> {
        let (title, schema, views) = ("Model".to_owned(), json!({}), Vec::new());
        let definition = KindDefinition { title, schema, visibility, cost: 1, views, append_only: false };
        Arc::new(ValidatedKind::new(definition, 4, retired))
    }

    fn publish(draft: Draft, kind: Arc<ValidatedKind>) -> CatalogItemCommand {
        CatalogItemCommand::Publish { draft: Some(Arc::new(draft)), kind: Some(kind), unpublished: Vec::new() }
    }

    fn open() -> Arc<ValidatedKind> {
        kind(Visibility::OptIn, false)
    }

    fn published(item_version: u64, record_version: u64, shown_since: u64) -> CatalogItemEvent {
        let Draft { kind, kind_version, data, .. } = draft(record_version);
        let searched = Vec::new();
        let event =
            CatalogItemPublished { kind, kind_version, data, item_version, record_version, shown_since, searched };
        CatalogItemEvent::Published(event)
    }

    fn withdrawn() -> CatalogItemEvent {
        CatalogItemEvent::Withdrawn(CatalogItemWithdrawn { reason: "old".to_owned() })
    }

    fn withdraw(reason: &str) -> CatalogItemCommand {
        CatalogItemCommand::Withdraw(WithdrawCatalogItem { id: id(), reason: reason.to_owned() })
    }

    #[test]
    fn each_publication_is_another_version_with_the_draft_of_then() {
        assert_eq!(given::<CatalogItem>(&[]).when(publish(draft(2), open())), Ok(vec![published(1, 2, 1)]));
        let item = given::<CatalogItem>(&[published(1, 2, 1)]);
        assert_eq!(item.when(publish(draft(2), open())), Ok(vec![]));
        assert_eq!(item.when(publish(draft(3), open())), Ok(vec![published(2, 3, 1)]));
    }

    #[test]
    fn what_was_withdrawn_does_not_come_back_with_the_next_version() {
        let item = given::<CatalogItem>(&[published(1, 2, 1), published(2, 3, 1), withdrawn()]);
        assert!(!item.0.is_published());
        assert_eq!(item.when(withdraw("again")), Ok(vec![]));
        assert_eq!(item.when(publish(draft(3), open())), Ok(vec![published(3, 3, 3)]));
    }

    #[test]
    fn a_draft_of_a_private_or_retired_kind_stays_one() {
        let item = given::<CatalogItem>(&[]);
        for (kind, code) in
            [(kind(Visibility::Private, false), "kind_private"), (kind(Visibility::DefaultOn, true), "kind_retired")]
        {
            assert_eq!(rejection(item.when(publish(draft(1), kind))).code, code);
        }
        let archived = Draft { archived: true, ..draft(1) };
        assert_eq!(rejection(item.when(publish(archived, open()))).code, "record_archived");
        let none = CatalogItemCommand::Publish { draft: None, kind: None, unpublished: Vec::new() };
        assert_eq!(rejection(item.when(none)).kind, RejectionKind::NotFound);
    }

    #[test]
    fn an_item_refers_to_items_only() {
        let field = FieldError { pointer: "/data/model".to_owned(), code: "x".into(), detail: "x".to_owned() };
        let command = CatalogItemCommand::Publish {
            draft: Some(Arc::new(draft(1))),
            kind: Some(open()),
            unpublished: vec![field.clone()],
        };
        let refused = rejection(given::<CatalogItem>(&[]).when(command));
        assert_eq!((refused.code, refused.errors), ("reference_not_found", vec![field]));
    }

    #[test]
    fn a_withdrawal_has_a_reason_and_something_to_withdraw() {
        assert_eq!(rejection(given::<CatalogItem>(&[]).when(withdraw("old"))).kind, RejectionKind::NotFound);
        let item = given::<CatalogItem>(&[published(1, 2, 1)]);
        assert_eq!(fields(item.when(withdraw(" "))), [("/reason".to_owned(), "too_short".to_owned())]);
        assert_eq!(item.when(withdraw("old")), Ok(vec![withdrawn()]));
    }

    #[test]
    fn only_what_is_published_can_be_referred_to_as_what_it_is() {
        let (model, trace) = ("model".parse().unwrap(), "trace".parse().unwrap());
        let item = given::<CatalogItem>(&[published(1, 2, 1)]).0;
        assert!(item.may_be_referred_to(&model) && !item.may_be_referred_to(&trace));
        assert!(!given::<CatalogItem>(&[published(1, 2, 1), withdrawn()]).0.may_be_referred_to(&model));
        assert!(!CatalogItem::default().may_be_referred_to(&model));
    }
}
