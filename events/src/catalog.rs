//! Events of the catalog: what the platform publishes of its own records, and what an organization chose of that for itself.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{KindName, RecordId, SearchedField, codec::event_enum, json};

event_enum! {
    /// The events of a catalog item. Its id is that of the platform's record that is its draft.
    CatalogItemEvent about aggregate {
        Published(CatalogItemPublished) = "catalog_item.published", 1;
        Withdrawn(CatalogItemWithdrawn) = "catalog_item.withdrawn", 1;
    }
}

event_enum! {
    /// The events of an organization's choices in the catalog.
    CatalogChoiceEvent about "catalog_item".item {
        Made(CatalogChoiceMade) = "catalog_choice.made", 1;
        Cleared(CatalogChoiceCleared) = "catalog_choice.cleared", 1;
    }
}

/// A version of the item was published: the draft as it was then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogItemPublished {
    /// The kind.
    pub kind: KindName,
    /// The version of the kind's schema that the content was validated against.
    pub kind_version: u64,
    /// The whole content.
    #[serde(deserialize_with = "json::deserialize")]
    pub data: Value,
    /// The version of the item, counted from 1.
    pub item_version: u64,
    /// The version of the record that it was made of.
    pub record_version: u64,
    /// The earliest version of the item that can be read from now on: none from before a withdrawal.
    pub shown_since: u64,
    /// The fields that are searched, as the kind declares them at the publication.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub searched: Vec<SearchedField>,
}

/// The item was withdrawn: none of its versions can be read any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogItemWithdrawn {
    /// The reason.
    pub reason: String,
}

/// What an organization may choose about an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CatalogChoice {
    /// It is among the organization's own picks.
    Pinned,
    /// It is left out of the organization's listing.
    Hidden,
}

/// An organization pinned or hid an item for itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogChoiceMade {
    /// The item.
    pub item: RecordId,
    /// The choice, in place of an earlier one.
    pub choice: CatalogChoice,
}

/// An organization took its choice about an item back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogChoiceCleared {
    /// The item.
    pub item: RecordId,
}
