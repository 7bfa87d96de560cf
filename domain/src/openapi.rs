//! OpenAPI schemas of commands: those that types of the pure `events` crate cannot carry themselves.

use orgstream_events::{
    CatalogChoice, InvitePolicy, JitProvisioning, KeyEnvironment, MfaPolicy, Pipeline, Role, TenantType, Visibility,
};
use serde::Serialize;
use utoipa::openapi::{
    Object, ObjectBuilder, OneOfBuilder, Ref, RefOr, Schema,
    schema::{AdditionalProperties, Discriminator, Type},
};

/// Builds the schema of one command.
type SchemaOf = fn() -> RefOr<Schema>;

/// One object per command, distinguished by `type`, each with a name of its own: client generators name their types by it.
///
/// The derived form would be `allOf` of the fields and of the type, which no value satisfies once unknown fields are
/// refused; so the type becomes a field like the others.
pub(super) fn one_of_commands(commands: &[(&str, SchemaOf)]) -> RefOr<Schema> {
    let mut one_of = OneOfBuilder::new();
    let mut by_type = Discriminator::new("type");
    for (name, _) in commands {
        let reference = Ref::from_schema_name(schema_name(name));
        by_type.mapping.insert((*name).to_owned(), reference.ref_location.clone());
        one_of = one_of.item(reference);
    }
    let description = "What a producer asks for; `type` says which command it is.";
    one_of.description(Some(description)).discriminator(Some(by_type)).into()
}

/// Returns the schema of each command, by its name.
pub(super) fn each_command(commands: &[(&str, SchemaOf)]) -> Vec<(String, RefOr<Schema>)> {
    commands.iter().map(|(name, schema)| (schema_name(name), tagged(name, *schema).into())).collect()
}

/// `create_record` becomes `CreateRecordCommand`.
fn schema_name(command: &str) -> String {
    let words = command.split('_').map(|word| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    });
    words.chain(["Command".to_owned()]).collect()
}

fn tagged(name: &str, schema: SchemaOf) -> Object {
    let fields = match schema() {
        RefOr::T(Schema::Object(fields)) => fields,
        // Commands are structs, and a struct is an object.
        RefOr::T(_) | RefOr::Ref(_) => Object::default(),
    };
    let says = format!("Name of the command: `{name}`.");
    let tag = ObjectBuilder::new().schema_type(Type::String).description(Some(says)).enum_values(Some([name]));
    let mut command = ObjectBuilder::new()
        .schema_type(Type::Object)
        .title(Some(schema_name(name)))
        .description(fields.description)
        .property("type", tag)
        .required("type")
        .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)));
    for (name, property) in fields.properties {
        command = command.property(name, property);
    }
    for name in fields.required {
        command = command.required(name);
    }
    command.build()
}

/// A role.
pub fn role() -> Object {
    let description =
        "Role: `owner`, `admin`, `member` (or `editor`), `viewer`, `auditor`, or the id of a custom role (`role_…`)";
    let names = Role::BUILT_IN.map(|role| role.name().into_owned());
    ObjectBuilder::new().schema_type(Type::String).description(Some(description)).examples(names).build()
}

/// Whether sign-in creates members.
pub fn jit_provisioning() -> Object {
    names(
        "Membership by signing in: never, or with a verified address of a proven domain.",
        &[JitProvisioning::NotAllowed, JitProvisioning::Restricted],
    )
}

/// The policy on who may be invited.
pub fn invite_policy() -> Object {
    names(
        "Addresses that may be invited: all, those of `allowed_domains`, or none.",
        &[InvitePolicy::All, InvitePolicy::Restricted, InvitePolicy::None],
    )
}

/// The environment of a key.
pub fn key_environment() -> Object {
    names("Purpose of the key, shown in its token; both work alike.", &[KeyEnvironment::Live, KeyEnvironment::Test])
}

/// What an organization chose about an item of the catalog.
pub fn catalog_choice() -> Object {
    names(
        "Choice about an item of the catalog: among the organization's picks, or left out of its listing.",
        &[CatalogChoice::Pinned, CatalogChoice::Hidden],
    )
}

/// The visibility of the platform's own records of a kind.
pub fn visibility() -> Object {
    names(
        "Reach of the platform's own records of the kind.",
        &[Visibility::DefaultOn, Visibility::OptIn, Visibility::Private],
    )
}

const TENANT_TYPES: [TenantType; 4] =
    [TenantType::Personal, TenantType::Organization, TenantType::Team, TenantType::Workspace];

/// The kind of tenant, as it is shown.
pub fn tenant_type() -> Object {
    names("Type of tenant.", &TENANT_TYPES)
}

/// The kind of tenant, as a request names it.
pub fn tenant_type_of_request() -> Object {
    names(
        "Type of tenant, in any case of letters; `organization` by default, which may also be called `tenant`.",
        &TENANT_TYPES,
    )
}

/// The policy on second factors.
pub fn mfa_policy() -> Object {
    names("Second factor of people.", &[MfaPolicy::Optional, MfaPolicy::Required])
}

/// All that a plan says.
pub fn plan_definition() -> Object {
    let text = |says: &str, example: &str| {
        ObjectBuilder::new().schema_type(Type::String).description(Some(says)).examples([example])
    };
    let number = |says: &str, example: u32| {
        let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).description(Some(says));
        number.examples([example])
    };
    let meter = ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("Terms of the meter. Amounts are decimal texts in units of the meter."))
        .property("included", text("Amount that is included in each calendar month (UTC).", "100000"))
        .property("overage", text("Amount beyond it that may be used in a month, after everything else.", "1000000"))
        .property(
            "price_per_million",
            text(
                "Price of a million units of the overage, in the currency of the installation; none without it.",
                "2.5",
            ),
        )
        .property(
            "top_up_price_per_million",
            text("Price of a million units that are bought before they are used; none are sold without it.", "2"),
        )
        .property("cap", text("Most that may be used in a month, whatever was granted.", "2000000"))
        .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)));
    let limits = ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("Limits of an organization, where it has none of its own. What is absent has none."))
        .property("concurrency", number("Open holds at the same time, at most 1,000 in any case.", 20))
        .property("reads_per_second", number("Reads per second on average; ten seconds of that at once.", 200))
        .property("quotas", quotas())
        .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)));
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("Definition of the plan."))
        .property("title", text("Name for people, 1 to 120 characters.", "Premium"))
        .property(
            "meters",
            ObjectBuilder::new()
                .schema_type(Type::Object)
                .description(Some("Terms of each meter, by its name; at most 32."))
                .additional_properties(Some(RefOr::T(Schema::Object(meter.build())))),
        )
        .property("limits", limits)
        .property("monthly_fee", text("Fee of each calendar month (UTC), not divided; none without it.", "49"))
        .property(
            "trial_days",
            number("Days of the trial from the change to this plan on, 1 to 366; no end without it.", 30),
        )
        .required("title")
        .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)))
        .build()
}

/// When an amount is bought by itself.
pub fn top_up_rule() -> Object {
    let text = |says: &str, example: &str| {
        ObjectBuilder::new().schema_type(Type::String).description(Some(says)).examples([example])
    };
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("Rule of top-ups, or null. Amounts are decimal texts in units of the meter."))
        .property(
            "below",
            text(
                "Amount below which more is bought; what is paid for afterwards is not counted as available.",
                "10000",
            ),
        )
        .property("amount", text("Amount that is bought; the smallest multiple of it that fills the gap.", "100000"))
        .property(
            "monthly_limit",
            text("Most that is bought by itself in a calendar month (UTC); no limit without it.", "1000000"),
        )
        .required("below")
        .required("amount")
        .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)))
        .build()
}

/// The most that there may be of things that stay.
pub fn quotas() -> Object {
    let number = |says: &str, example: u64| {
        let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).description(Some(says));
        number.examples([example])
    };
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("Quotas: the most that there may be. What is absent has no limit of its own."))
        .property("members", number("Number of members, from 0.", 25))
        .property("api_keys", number("Number of API keys that are neither revoked nor expired, from 0.", 50))
        .property("webhooks", number("Number of addresses that the audit log is posted to: 0 or 1.", 1))
        .property(
            "storage_bytes",
            number("Bytes of the content of records that are not archived, as JSON, from 0.", 1_073_741_824),
        )
        .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)))
        .build()
}

/// A pipeline.
pub fn pipeline() -> Object {
    let written = Pipeline::ALL.map(|pipeline| format!("`{pipeline}`: {}", pipeline.description()));
    names(&format!("Pipeline from the event log to tables. {}", written.join(" ")), &Pipeline::ALL)
}

/// An aggregate, as it appears in event headers.
pub fn aggregate() -> Object {
    let text = |example: &str, says: &str| {
        ObjectBuilder::new().schema_type(Type::String).description(Some(says)).examples([example])
    };
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some("Aggregate, by type and id."))
        .property("type", text("record", "Type of the aggregate"))
        .property("id", text("res_01h455vb4pex5vsknk084sn02q", "Id of the aggregate"))
        .required("type")
        .required("id")
        .build()
}

fn names(description: &str, values: &[impl Serialize]) -> Object {
    let names = values.iter().filter_map(|value| serde_json::to_value(value).ok());
    ObjectBuilder::new().schema_type(Type::String).description(Some(description)).enum_values(Some(names)).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_names_are_those_on_the_wire() {
        let role = serde_json::to_value(role()).unwrap();
        assert_eq!(role["examples"], serde_json::json!(["owner", "admin", "member", "viewer", "auditor"]));
        assert_eq!(serde_json::to_value(visibility()).unwrap()["enum"][0], "default_on");
    }
}
