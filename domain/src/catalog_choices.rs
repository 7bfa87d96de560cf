//! What an organization chose of the catalog for itself: one aggregate, because the number of choices is bounded. It changes
//! no item, and nothing of another organization.

use std::collections::BTreeMap;

use orgstream_events::{
    AggregateId, AggregateType, CatalogChoice, CatalogChoiceCleared, CatalogChoiceEvent, CatalogChoiceMade, Event,
    OrgId, RecordId,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, Permission, Rejection, RejectionKind, Requires, Scope,
    grants::Grant, openapi,
};

/// The maximum number of choices of an organization.
pub const MAX_CHOICES: usize = 1_000;

/// All choices of an organization.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CatalogChoices {
    choices: BTreeMap<RecordId, CatalogChoice>,
}

/// The commands of the choices.
#[derive(Debug, Clone, PartialEq)]
pub enum CatalogChoiceCommand {
    /// Pins or hides an item.
    Choose {
        /// The command as received.
        command: ChooseCatalogItem,
        /// Whether the item is published.
        is_published: bool,
    },
    /// Takes a choice back.
    Clear(ClearCatalogChoice),
}

/// An item of the catalog that the organization pins or hides for itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChooseCatalogItem {
    /// Record id of the item (`res_` and 26 characters).
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
    /// Choice, in place of an earlier one.
    #[schema(schema_with = openapi::catalog_choice)]
    pub choice: CatalogChoice,
}

impl Declared for ChooseCatalogItem {
    const SPEC: CommandSpec = CommandSpec {
        name: "choose_catalog_item",
        requires: Requires::Permission(Permission::ManageCatalog),
        events: &["catalog_choice.made"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::CatalogChoice(org))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// No choice about an item any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClearCatalogChoice {
    /// Record id of the item (`res_` and 26 characters).
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
}

impl Declared for ClearCatalogChoice {
    const SPEC: CommandSpec = CommandSpec {
        name: "clear_catalog_choice",
        requires: Requires::Permission(Permission::ManageCatalog),
        events: &["catalog_choice.cleared"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::CatalogChoice(org))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

impl Aggregate for CatalogChoices {
    type Command = CatalogChoiceCommand;
    type Event = CatalogChoiceEvent;
    type Error = CatalogChoiceError;
    const TYPE: AggregateType = AggregateType::CatalogChoice;
    const SHAPE: u16 = 1;

    fn apply(&mut self, event: &CatalogChoiceEvent) {
        match event {
            CatalogChoiceEvent::Made(CatalogChoiceMade { item, choice }) => {
                self.choices.insert(*item, *choice);
            }
            CatalogChoiceEvent::Cleared(CatalogChoiceCleared { item }) => {
                self.choices.remove(item);
            }
        }
    }

    fn decide(
        &self,
        command: CatalogChoiceCommand,
        _: &DecisionContext,
    ) -> Result<Vec<CatalogChoiceEvent>, CatalogChoiceError> {
        match command {
            CatalogChoiceCommand::Choose { command: ChooseCatalogItem { id, choice }, is_published } => {
                if !is_published {
                    return Err(CatalogChoiceError::NotFound);
                }
                match self.choices.get(&id) {
                    Some(before) if *before == choice => return Ok(vec![]),
                    None if self.choices.len() >= MAX_CHOICES => return Err(CatalogChoiceError::TooMany),
                    Some(_) | None => {}
                }
                Ok(vec![CatalogChoiceEvent::Made(CatalogChoiceMade { item: id, choice })])
            }
            CatalogChoiceCommand::Clear(ClearCatalogChoice { id }) => match self.choices.get(&id) {
                Some(_) => Ok(vec![CatalogChoiceEvent::Cleared(CatalogChoiceCleared { item: id })]),
                None => Err(CatalogChoiceError::NotChosen),
            },
        }
    }

    fn wrap(event: CatalogChoiceEvent) -> Event {
        Event::CatalogChoice(event)
    }

    fn event_of(event: &Event) -> Option<&CatalogChoiceEvent> {
        if let Event::CatalogChoice(event) = event { Some(event) } else { None }
    }
}

/// The reasons why a command about a choice is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogChoiceError {
    /// No such item, or none that is published.
    #[error("there is no such item in the catalog")]
    NotFound,
    /// There is no choice about the item.
    #[error("this organization has neither pinned nor hidden this item")]
    NotChosen,
    /// The maximum number of choices is reached.
    #[error("an organization pins and hides at most {MAX_CHOICES} items; clear a choice first")]
    TooMany,
}

impl From<CatalogChoiceError> for Rejection {
    fn from(error: CatalogChoiceError) -> Self {
        let (kind, code) = match error {
            CatalogChoiceError::NotFound | CatalogChoiceError::NotChosen => (RejectionKind::NotFound, "not_found"),
            CatalogChoiceError::TooMany => (RejectionKind::Conflict, "too_many_catalog_choices"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{given, rejection};

    fn id(n: u16) -> RecordId {
        let [high, low] = n.to_be_bytes();
        RecordId::fresh(1_700_000_000_000, [high, low, 0, 0, 0, 0, 0, 0, 0, 1])
    }

    fn choose(n: u16, choice: CatalogChoice) -> CatalogChoiceCommand {
        CatalogChoiceCommand::Choose { command: ChooseCatalogItem { id: id(n), choice }, is_published: true }
    }

    fn made(n: u16, choice: CatalogChoice) -> CatalogChoiceEvent {
        CatalogChoiceEvent::Made(CatalogChoiceMade { item: id(n), choice })
    }

    #[test]
    fn the_last_choice_about_an_item_counts() {
        let choices = given::<CatalogChoices>(&[made(1, CatalogChoice::Pinned)]);
        assert_eq!(choices.when(choose(1, CatalogChoice::Pinned)), Ok(vec![]));
        assert_eq!(choices.when(choose(1, CatalogChoice::Hidden)), Ok(vec![made(1, CatalogChoice::Hidden)]));
        let cleared = CatalogChoiceEvent::Cleared(CatalogChoiceCleared { item: id(1) });
        let clear = CatalogChoiceCommand::Clear(ClearCatalogChoice { id: id(1) });
        assert_eq!(choices.when(clear.clone()), Ok(vec![cleared.clone()]));
        let choices = given::<CatalogChoices>(&[made(1, CatalogChoice::Pinned), cleared]);
        assert_eq!(rejection(choices.when(clear)).kind, RejectionKind::NotFound);
    }

    #[test]
    fn what_is_not_published_cannot_be_chosen() {
        let command = ChooseCatalogItem { id: id(1), choice: CatalogChoice::Pinned };
        let command = CatalogChoiceCommand::Choose { command, is_published: false };
        assert_eq!(rejection(given::<CatalogChoices>(&[]).when(command)).kind, RejectionKind::NotFound);
    }

    #[test]
    fn an_organization_has_so_many_choices_and_no_more() {
        let most = u16::try_from(MAX_CHOICES).unwrap();
        let full: Vec<_> = (0..most).map(|n| made(n, CatalogChoice::Hidden)).collect();
        let choices = given::<CatalogChoices>(&full);
        let refused = rejection(choices.when(choose(most, CatalogChoice::Pinned)));
        assert_eq!((refused.code, refused.kind), ("too_many_catalog_choices", RejectionKind::Conflict));
        assert!(choices.when(choose(0, CatalogChoice::Pinned)).is_ok());
    }
}
