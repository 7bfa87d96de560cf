//! One kind of records: its schema, its visibility, its cost, and whether its records are written once. Kinds are data: of the
//! platform, for all organizations, or of one organization, for itself ([`KindName::owner`]).

use std::sync::Arc;

use orgstream_events::{
    AggregateId, AggregateType, Event, KindChanged, KindDefinition, KindEvent, KindName, KindRegistered, KindRestored,
    KindRetired, OrgId, PLATFORM_ORG, Visibility,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Rejection, RejectionKind,
    Requires, Scope,
    annotations::Annotations,
    grants::Grant,
    openapi, own_kinds,
    schema::{ValidatedKind, Validators, compile, compile_own},
    text::{Faults, under},
    views::{self, KindViewDefinition},
};

/// The maximum cost of one record.
pub const MAX_COST: u32 = 10_000;

/// The state of a kind. By default it does not exist yet.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Kind {
    version: u64,
    current: Option<Arc<ValidatedKind>>,
}

/// The state without what is compiled of it.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u64,
    /// The definition, its version, and whether it is retired.
    current: Option<(KindDefinition, u64, bool)>,
}

impl From<Kind> for Stored {
    fn from(Kind { version, current }: Kind) -> Self {
        let current = current.map(|current| (current.definition.clone(), current.version, current.retired));
        Self { version, current }
    }
}

impl From<Stored> for Kind {
    fn from(Stored { version, current }: Stored) -> Self {
        let compiled = |(definition, version, retired)| Arc::new(ValidatedKind::new(definition, version, retired));
        Self { version, current: current.map(compiled) }
    }
}

impl Kind {
    /// Returns the definition, once it is registered, with the schema compiled.
    pub fn validated(&self) -> Option<Arc<ValidatedKind>> {
        self.current.clone()
    }
}

/// The commands of a kind.
#[derive(Debug, Clone, PartialEq)]
pub enum KindCommand {
    /// Registers the kind.
    Register(RegisterKind),
    /// Changes the definition.
    Change(ChangeKind),
    /// Retires the kind.
    Retire(RetireKind),
    /// Restores the kind.
    Restore(RestoreKind),
}

impl From<RegisterKind> for KindCommand {
    fn from(command: RegisterKind) -> Self {
        Self::Register(command)
    }
}

impl From<ChangeKind> for KindCommand {
    fn from(command: ChangeKind) -> Self {
        Self::Change(command)
    }
}

impl From<RetireKind> for KindCommand {
    fn from(command: RetireKind) -> Self {
        Self::Retire(command)
    }
}

impl From<RestoreKind> for KindCommand {
    fn from(command: RestoreKind) -> Self {
        Self::Restore(command)
    }
}

/// A new kind of records. In an organization it is the organization's own, and its name begins with `x_`; in the platform's own
/// organization it is for all, and for platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterKind {
    /// Permanent name in commands and paths: 1 to 63 characters of a-z, 0-9 and _, beginning with a letter; in an organization
    /// beginning with `x_`.
    #[schema(value_type = String, example = "x_ticket")]
    pub kind: KindName,
    /// Display name, 1 to 120 characters.
    #[schema(example = "Evaluation", max_length = 120)]
    pub title: String,
    /// JSON Schema (2020-12) that every record's data must satisfy: at most 64 KiB, referring only to itself.
    #[schema(value_type = Object)]
    pub schema: Value,
    /// Reach of the platform's own records of the kind; `private` (the default) is the only one of an organization's own kind.
    #[serde(default = "private")]
    #[schema(schema_with = openapi::visibility, required = false)]
    pub visibility: Visibility,
    /// Cost of writing one record, in the units of limits: 1 (the default) to 10,000.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 10000)]
    pub cost: u32,
    /// Views of the records, at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 8)]
    pub views: Vec<KindViewDefinition>,
    /// True for a kind whose records are written once, such as logs: they are never changed and never archived. Permanent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub append_only: bool,
}

impl Declared for RegisterKind {
    const SPEC: CommandSpec = CommandSpec {
        name: "register_kind",
        requires: Requires::Permission(Permission::ManageKinds),
        events: &["kind.registered"],
        creates: true,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Kind(self.kind.clone()))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

fn one() -> u32 {
    1
}

fn private() -> Visibility {
    Visibility::Private
}

/// Another definition. What is missing stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeKind {
    /// Kind of record, by name: 1 to 63 characters of a-z, 0-9 and _.
    #[schema(value_type = String, example = "evaluation")]
    pub kind: KindName,
    /// New display name, 1 to 120 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// JSON Schema (2020-12) for records that are written from now on; existing records stay as they were checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// New reach of the platform's own records of the kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = openapi::visibility, required = false)]
    pub visibility: Option<Visibility>,
    /// New cost of writing one record, in the units of limits: 1 to 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10000)]
    pub cost: Option<u32>,
    /// New views of the records, all of them, at most 8; an empty list takes them away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 8)]
    pub views: Option<Vec<KindViewDefinition>>,
}

impl Declared for ChangeKind {
    const SPEC: CommandSpec = CommandSpec {
        name: "change_kind",
        requires: Requires::Permission(Permission::ManageKinds),
        events: &["kind.changed"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Kind(self.kind.clone()))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// No new records of this kind; the old ones stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetireKind {
    /// Kind of record, by name: 1 to 63 characters of a-z, 0-9 and _.
    #[schema(value_type = String, example = "evaluation")]
    pub kind: KindName,
}

impl Declared for RetireKind {
    const SPEC: CommandSpec = CommandSpec {
        name: "retire_kind",
        requires: Requires::Permission(Permission::ManageKinds),
        events: &["kind.retired"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Kind(self.kind.clone()))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// New records of a kind that was retired, by the definition that it had then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreKind {
    /// Kind of record, by name: 1 to 63 characters of a-z, 0-9 and _.
    #[schema(value_type = String, example = "evaluation")]
    pub kind: KindName,
}

impl Declared for RestoreKind {
    const SPEC: CommandSpec = CommandSpec {
        name: "restore_kind",
        requires: Requires::Permission(Permission::ManageKinds),
        events: &["kind.restored"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Kind(self.kind.clone()))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

impl Aggregate for Kind {
    type Command = KindCommand;
    type Event = KindEvent;
    type Error = KindError;
    const TYPE: AggregateType = AggregateType::Kind;
    const SHAPE: u16 = 2;

    fn apply(&mut self, event: &KindEvent) {
        self.version += 1;
        let (definition, retired) = match (event, &self.current) {
            (
                KindEvent::Registered(KindRegistered { definition }) | KindEvent::Changed(KindChanged { definition }),
                _,
            ) => (definition.clone(), false),
            (KindEvent::Retired(_), Some(current)) => (current.definition.clone(), true),
            (KindEvent::Restored(_), Some(current)) => (current.definition.clone(), false),
            (KindEvent::Retired(_) | KindEvent::Restored(_), None) => return,
        };
        self.current = Some(Arc::new(ValidatedKind::new(definition, self.version, retired)));
    }

    fn decide(&self, command: KindCommand, context: &DecisionContext) -> Result<Vec<KindEvent>, KindError> {
        let is_own = context.org != PLATFORM_ORG;
        match (command, &self.current) {
            (KindCommand::Register(_), Some(_)) => Err(KindError::AlreadyExists),
            (
                KindCommand::Register(RegisterKind { kind, title, schema, visibility, cost, views, append_only }),
                None,
            ) => {
                let mut faults = Faults::default();
                own_kinds::check_name(&kind, context.org, &mut faults);
                faults.none_or(KindError::Invalid)?;
                let views = views::read(views).map_err(KindError::Invalid)?;
                let definition = KindDefinition { title, schema, visibility, cost, views, append_only };
                check(&definition, is_own)?;
                Ok(vec![KindEvent::Registered(KindRegistered { definition })])
            }
            (KindCommand::Change(_) | KindCommand::Retire(_) | KindCommand::Restore(_), None) => {
                Err(KindError::NotFound)
            }
            (KindCommand::Change(_), Some(current)) if current.retired => Err(KindError::Retired),
            (KindCommand::Change(ChangeKind { kind: _, title, schema, visibility, cost, views }), Some(current)) => {
                let before = &current.definition;
                let views = views.map(views::read).transpose().map_err(KindError::Invalid)?;
                let definition = KindDefinition {
                    title: title.unwrap_or_else(|| before.title.clone()),
                    schema: schema.unwrap_or_else(|| before.schema.clone()),
                    visibility: visibility.unwrap_or(before.visibility),
                    cost: cost.unwrap_or(before.cost),
                    views: views.unwrap_or_else(|| before.views.clone()),
                    append_only: before.append_only,
                };
                check(&definition, is_own)?;
                let annotations = Annotations::read(&definition.schema).unwrap_or_default();
                let faults = annotations.faults_after(&current.annotations, [&before.schema, &definition.schema]);
                if !faults.is_empty() {
                    return Err(KindError::Invalid(faults));
                }
                let changed = definition != *before;
                Ok(if changed { vec![KindEvent::Changed(KindChanged { definition })] } else { vec![] })
            }
            (KindCommand::Retire(_), Some(current)) if current.retired => Ok(vec![]),
            (KindCommand::Retire(_), Some(_)) => Ok(vec![KindEvent::Retired(KindRetired {})]),
            (KindCommand::Restore(_), Some(current)) if !current.retired => Ok(vec![]),
            (KindCommand::Restore(_), Some(_)) => Ok(vec![KindEvent::Restored(KindRestored {})]),
        }
    }

    fn wrap(event: KindEvent) -> Event {
        Event::Kind(event)
    }

    fn event_of(event: &Event) -> Option<&KindEvent> {
        if let Event::Kind(event) = event { Some(event) } else { None }
    }
}

fn check(definition: &KindDefinition, is_own: bool) -> Result<(), KindError> {
    let mut faults = Faults::default();
    faults.name("/title", &definition.title);
    if !(1..=MAX_COST).contains(&definition.cost) {
        faults.add("/cost", "out_of_range", format!("must be 1 to {MAX_COST}"));
    }
    if is_own {
        own_kinds::check_visibility(definition, &mut faults);
    }
    let mut faults = faults.into_vec();
    let compiled = if is_own { compile_own(&definition.schema) } else { compile(&definition.schema) };
    match compiled {
        Ok(_) => {
            match Annotations::read(&definition.schema) {
                Ok(annotations) => {
                    faults.extend(Validators::of(&definition.schema, &annotations).err().into_iter().flatten());
                    if definition.append_only {
                        faults.extend(not_written_once(&annotations));
                    }
                }
                Err(declared) => faults.extend(declared),
            }
            faults.extend(views::check(&definition.views, &definition.schema).err().into_iter().flatten());
        }
        Err(schema) => faults.extend(schema),
    }
    if faults.is_empty() { Ok(()) } else { Err(KindError::Invalid(faults)) }
}

/// Returns the faults of declarations that a kind cannot have whose records are written once: nothing would ever free a unique
/// value, and nothing could destroy a secret.
fn not_written_once(annotations: &Annotations) -> Vec<FieldError> {
    let mut faults = Faults::default();
    let unique = annotations.unique.iter().map(|field| (field, "x-unique"));
    for (field, keyword) in unique.chain(annotations.secrets.iter().map(|field| (field, "x-secret"))) {
        under(&mut "/schema/properties".to_owned(), field, |path| {
            let detail = "must not stand in a kind whose records are written once";
            faults.add(format!("{path}/{keyword}"), "append_only", detail);
        });
    }
    faults.into_vec()
}

/// The reasons why a kind command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    /// Fields are invalid.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
    /// The name is taken permanently.
    #[error("there is a kind of this name already; change it with change_kind or choose another name")]
    AlreadyExists,
    /// No such kind.
    #[error("there is no kind of this name; register it first")]
    NotFound,
    /// The kind is retired.
    #[error("the kind is retired and does not change; restore it first, or register another one")]
    Retired,
}

impl From<KindError> for Rejection {
    fn from(error: KindError) -> Self {
        let (kind, code) = match error {
            KindError::Invalid(errors) => return Self::invalid(errors),
            KindError::AlreadyExists => (RejectionKind::Conflict, "kind_exists"),
            KindError::NotFound => (RejectionKind::NotFound, "not_found"),
            KindError::Retired => (RejectionKind::Conflict, "kind_retired"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{fields, given, rejection};

    fn register(schema: Value) -> KindCommand {
        let kind = "evaluation".parse().unwrap();
        let title = "Evaluation".to_owned();
        KindCommand::Register(RegisterKind {
            kind,
            title,
            schema,
            visibility: Visibility::Private,
            cost: 1,
            views: vec![],
            append_only: false,
        })
    }

    fn definition() -> KindDefinition {
        let schema = json!({"type": "object"});
        KindDefinition {
            title: "Evaluation".to_owned(),
            schema,
            visibility: Visibility::Private,
            cost: 1,
            views: vec![],
            append_only: false,
        }
    }

    fn registered() -> KindEvent {
        KindEvent::Registered(KindRegistered { definition: definition() })
    }

    fn change(mut patch: Value) -> KindCommand {
        patch["kind"] = json!("evaluation");
        KindCommand::Change(serde_json::from_value(patch).unwrap())
    }

    fn retire() -> KindCommand {
        KindCommand::Retire(RetireKind { kind: "evaluation".parse().unwrap() })
    }

    #[test]
    fn a_kind_begins_with_its_definition() {
        assert_eq!(
            given::<Kind>(&[]).when_in(PLATFORM_ORG, register(json!({"type": "object"}))),
            Ok(vec![registered()])
        );
    }

    #[test]
    fn the_kinds_of_an_organization_begin_otherwise_and_are_private() {
        let org = crate::testing::context().org;
        let own = |patch: Value| {
            let mut command = json!({"kind": "x_ticket", "title": "Ticket", "schema": {"type": "object"}});
            for (name, value) in patch.as_object().unwrap() {
                command[name] = value.clone();
            }
            given::<Kind>(&[]).when_in(org, KindCommand::Register(serde_json::from_value(command).unwrap()))
        };
        let KindEvent::Registered(event) = &own(json!({})).unwrap()[0] else { panic!() };
        assert_eq!((event.definition.visibility, event.definition.cost), (Visibility::Private, 1));
        let refused = |patch| fields(own(patch));
        assert_eq!(refused(json!({"kind": "ticket"})), [("/kind".to_owned(), "own_prefix".to_owned())]);
        assert_eq!(refused(json!({"visibility": "opt_in"}))[0], ("/visibility".to_owned(), "private_only".to_owned()));
        assert_eq!(refused(json!({"schema": {"properties": {"a": {"$ref": "#"}}}}))[0].1, "recursive_reference");
        let KindCommand::Register(command) = register(json!({})) else { panic!() };
        let platforms = KindCommand::Register(RegisterKind { kind: "x_ticket".parse().unwrap(), ..command });
        let refused = fields(given::<Kind>(&[]).when_in(PLATFORM_ORG, platforms));
        assert_eq!(refused, [("/kind".to_owned(), "own_prefix".to_owned())]);
        // Many patterns are small ones.
        let many = |size: usize| {
            let patterns = (0..200).map(|number| (format!("p{number}[a-z]{{{size}}}"), json!(true)));
            json!({"schema": {"patternProperties": patterns.collect::<serde_json::Map<_, _>>()}})
        };
        assert!(own(many(2)).is_ok());
        assert!(refused_at(&own(many(900))).starts_with("/schema"));
        // Later changes are held to the same.
        let kind = given::<Kind>(&own(json!({})).unwrap());
        let change = |patch: Value| {
            let mut patch = patch;
            patch["kind"] = json!("x_ticket");
            kind.when_in(org, KindCommand::Change(serde_json::from_value(patch).unwrap()))
        };
        assert_eq!(fields(change(json!({"visibility": "default_on"})))[0].0, "/visibility");
        assert_eq!(change(json!({"title": "Tickets"})).unwrap().len(), 1);
    }

    fn refused_at(result: &Result<Vec<KindEvent>, KindError>) -> String {
        fields(result.clone())[0].0.clone()
    }

    #[test]
    fn a_name_is_registered_once() {
        assert_eq!(
            rejection(given::<Kind>(&[registered()]).when_in(PLATFORM_ORG, register(json!({})))).code,
            "kind_exists"
        );
    }

    #[test]
    fn a_bad_schema_is_pointed_at() {
        let found =
            fields(given::<Kind>(&[]).when_in(PLATFORM_ORG, register(json!({"properties": {"a": {"type": 1}}}))));
        assert_eq!(found[0].0, "/schema/properties/a/type");
    }

    #[test]
    fn title_and_cost_have_bounds() {
        let kind = given::<Kind>(&[registered()]);
        assert_eq!(fields(kind.when_in(PLATFORM_ORG, change(json!({"title": "", "cost": 0})))).len(), 2);
        assert_eq!(fields(kind.when_in(PLATFORM_ORG, change(json!({"cost": 10_001}))))[0].0, "/cost");
    }

    #[test]
    fn a_kind_is_append_only_from_its_registration_on_and_has_no_unique_values_and_no_secrets_then() {
        let register = |schema: Value| {
            let KindCommand::Register(command) = register(schema) else { panic!("it registers") };
            KindCommand::Register(RegisterKind { append_only: true, ..command })
        };
        let decided = given::<Kind>(&[]).when_in(PLATFORM_ORG, register(json!({"type": "object"}))).unwrap();
        let kind = given::<Kind>(&decided);
        assert!(kind.0.validated().unwrap().definition.append_only);
        let decided = [decided, kind.when_in(PLATFORM_ORG, change(json!({"cost": 5}))).unwrap()].concat();
        assert!(given::<Kind>(&decided).0.validated().unwrap().definition.append_only);
        for keyword in ["x-unique", "x-secret"] {
            let declares = json!({"properties": {"a": {"type": "string", keyword: true}}});
            let refused = [("/schema/properties/a".to_owned() + "/" + keyword, "append_only".to_owned())];
            assert_eq!(fields(given::<Kind>(&[]).when_in(PLATFORM_ORG, register(declares.clone()))), refused);
            assert_eq!(
                fields(given::<Kind>(&decided).when_in(PLATFORM_ORG, change(json!({"schema": declares})))),
                refused
            );
        }
    }

    #[test]
    fn a_change_keeps_what_it_does_not_mention() {
        let changed = KindDefinition { cost: 5, ..definition() };
        assert_eq!(
            given::<Kind>(&[registered()]).when_in(PLATFORM_ORG, change(json!({"cost": 5}))),
            Ok(vec![KindEvent::Changed(KindChanged { definition: changed })])
        );
        assert_eq!(given::<Kind>(&[registered()]).when_in(PLATFORM_ORG, change(json!({"cost": 1}))), Ok(vec![]));
    }

    #[test]
    fn views_are_of_what_the_schema_declares_whichever_of_them_changes() {
        let kind = given::<Kind>(&[registered()]);
        let views = json!([{"name": "all", "measures": [{"name": "sum", "fold": "sum", "of": "/score"}]}]);
        assert_eq!(fields(kind.when_in(PLATFORM_ORG, change(json!({"views": views}))))[0].0, "/views/0/measures/0/of");
        let schema = json!({"properties": {"score": {"type": "number"}}});
        let changed = kind.when_in(PLATFORM_ORG, change(json!({"views": views, "schema": schema}))).unwrap();
        let kind = given::<Kind>(&[registered(), changed[0].clone()]);
        assert_eq!(kind.0.validated().unwrap().definition.views.len(), 1);
        assert_eq!(kind.when_in(PLATFORM_ORG, change(json!({"schema": schema}))), Ok(vec![]));
        assert_eq!(fields(kind.when_in(PLATFORM_ORG, change(json!({"schema": {}}))))[0].0, "/views/0/measures/0/of");
        let KindEvent::Changed(event) = &kind.when_in(PLATFORM_ORG, change(json!({"views": []}))).unwrap()[0] else {
            panic!()
        };
        assert!(event.definition.views.is_empty());
    }

    #[test]
    fn every_change_is_a_version() {
        let changed = KindEvent::Changed(KindChanged { definition: definition() });
        let kind = given::<Kind>(&[registered(), changed]).0;
        assert_eq!(kind.validated().unwrap().version, 2);
    }

    #[test]
    fn a_retired_kind_does_not_change_any_more() {
        let kind = given::<Kind>(&[registered(), KindEvent::Retired(KindRetired {})]);
        assert_eq!(rejection(kind.when_in(PLATFORM_ORG, change(json!({"cost": 2})))).code, "kind_retired");
        assert_eq!(kind.when_in(PLATFORM_ORG, retire()), Ok(vec![]));
    }

    #[test]
    fn a_retired_kind_can_be_restored_and_is_what_it_was() {
        let restore = || KindCommand::Restore(RestoreKind { kind: "evaluation".parse().unwrap() });
        let (retired, restored) = (KindEvent::Retired(KindRetired {}), KindEvent::Restored(KindRestored {}));
        assert_eq!(
            given::<Kind>(&[registered(), retired.clone()]).when_in(PLATFORM_ORG, restore()),
            Ok(vec![restored.clone()])
        );
        assert_eq!(given::<Kind>(&[registered()]).when_in(PLATFORM_ORG, restore()), Ok(vec![]));
        assert_eq!(rejection(given::<Kind>(&[]).when_in(PLATFORM_ORG, restore())).code, "not_found");
        let kind = given::<Kind>(&[registered(), retired, restored]);
        let now = kind.0.validated().unwrap();
        assert_eq!((now.version, now.retired, &now.definition), (3, false, &definition()));
        assert_eq!(kind.when_in(PLATFORM_ORG, retire()), Ok(vec![KindEvent::Retired(KindRetired {})]));
    }

    #[test]
    fn a_kind_is_retired_once_it_exists() {
        assert_eq!(
            given::<Kind>(&[registered()]).when_in(PLATFORM_ORG, retire()),
            Ok(vec![KindEvent::Retired(KindRetired {})])
        );
        assert_eq!(rejection(given::<Kind>(&[]).when_in(PLATFORM_ORG, retire())).code, "not_found");
    }
}
