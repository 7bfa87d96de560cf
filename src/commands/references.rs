//! References of records to records, and of kinds to kinds: looked up in the log when they are written.

use futures_util::{StreamExt, TryStreamExt, stream};
use orgstream_domain::{
    FieldError, Rejection,
    annotations::{Annotations, NamedReference, ReferenceScope},
    record::{Record, References, UnusableReferences},
    schema::ValidatedKind,
};
use orgstream_events::{AggregateId, KindName, OrgId, PLATFORM_ORG, RecordReference, Visibility};
use orgstream_stream::{Freshness, Placement};
use serde_json::Value;

use super::{handler::CommandHandler, request::CommandError};

/// The number of references of one record that are looked up at the same time.
pub(super) const AT_ONCE: usize = 8;

impl CommandHandler {
    /// Looks up what the data of a record refers to. What another organization has, what does not exist and what is archived all
    /// look the same.
    ///
    /// Each is as the log has it at this moment. One that is archived a moment later stays referred to, and readers see that.
    pub(super) async fn references(
        &self,
        placement: &Placement,
        kind: Option<&ValidatedKind>,
        data: &Value,
    ) -> Result<References, CommandError> {
        let Some(kind) = kind.filter(|kind| !kind.annotations.references.is_empty()) else { return Ok(Ok(Vec::new())) };
        let named = match kind.annotations.references_in(data) {
            Ok(named) => named,
            Err(faults) => return Ok(Err(UnusableReferences::Malformed(faults))),
        };
        // Data that will be refused for what it is costs no lookups.
        if named.is_empty() || kind.check(data).is_err() {
            return Ok(Ok(Vec::new()));
        }
        let found: Vec<Result<RecordReference, FieldError>> =
            stream::iter(named).map(|named| self.reference(placement, named)).buffered(AT_ONCE).try_collect().await?;
        let (mut references, mut missing) = (Vec::with_capacity(found.len()), Vec::new());
        for one in found {
            match one {
                Ok(reference) => references.push(reference),
                Err(fault) => missing.push(fault),
            }
        }
        Ok(if missing.is_empty() { Ok(references) } else { Err(UnusableReferences::NotFound(missing)) })
    }

    /// Looks one reference up.
    pub(super) async fn reference(
        &self,
        placement: &Placement,
        NamedReference { pointer, id, kind, scope }: NamedReference,
    ) -> Result<Result<RecordReference, FieldError>, CommandError> {
        let own = placement.org;
        // What the platform has of a private kind is not there for others.
        let is_shared = match scope {
            ReferenceScope::Own => false,
            ReferenceScope::Global | ReferenceScope::Either => {
                let target = self.kind(own, &kind).await?;
                own != PLATFORM_ORG && target.is_some_and(|kind| kind.definition.visibility != Visibility::Private)
            }
        };
        let places: &[OrgId] = match scope {
            ReferenceScope::Global if own == PLATFORM_ORG => &[own],
            ReferenceScope::Global if is_shared => &[PLATFORM_ORG],
            ReferenceScope::Global => &[],
            ReferenceScope::Either if is_shared => &[own, PLATFORM_ORG],
            ReferenceScope::Either | ReferenceScope::Own => &[own],
        };
        for org in places {
            // Of the platform, only what is published is there for others.
            let is_there = if *org != own {
                Box::pin(self.is_in_catalog(id, &kind)).await?
            } else if id.appended_place().is_some() {
                self.appended_record(placement, id).await?.is_some_and(|appended| appended.kind == kind)
            } else {
                let found =
                    self.aggregates.load::<Record>(placement, &AggregateId::Record(id), Freshness::Leader).await?;
                found.state.may_be_referred_to(&kind)
            };
            if is_there {
                return Ok(Ok(RecordReference { pointer, id, kind, global: *org != own }));
            }
        }
        let whose = match scope {
            ReferenceScope::Own => "in this organization",
            ReferenceScope::Global => "in the platform's catalog",
            ReferenceScope::Either => "in this organization or in the platform's catalog",
        };
        let detail = format!("there is no record of the kind {kind} with this id {whose} that is not archived");
        Ok(Err(FieldError { pointer: format!("/data{pointer}"), code: "reference_not_found".into(), detail }))
    }

    /// Refuses the schema of a kind that refers to kinds that `org` does not have: its own are there for it alone, and none of any
    /// organization are there for the platform.
    pub(super) async fn refers_to_kinds(
        &self,
        org: OrgId,
        kind: &KindName,
        schema: Option<&Value>,
    ) -> Result<(), CommandError> {
        // Anything else that is wrong with it is found when it is decided about.
        let Some(Ok(annotations)) = schema.map(Annotations::read) else { return Ok(()) };
        for place in annotations.references {
            if place.kind.is_own() && place.scope != ReferenceScope::Own {
                let detail = "must be own: the records of a kind of an organization's own are nowhere else";
                return Err(Rejection::field(format!("{}/scope", place.declared_at), "private_only", detail).into());
            }
            if place.kind == *kind || self.kind(org, &place.kind).await?.is_some() {
                continue;
            }
            let detail = format!(
                "there is no kind {}: register it first; GET /v1/kinds lists the platform's, and GET …/kinds an organization's",
                place.kind
            );
            return Err(Rejection::field(format!("{}/kind", place.declared_at), "unknown_kind", detail).into());
        }
        Ok(())
    }
}
