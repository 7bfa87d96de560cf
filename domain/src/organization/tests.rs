//! What the commands of an organization do, and what is refused.

use std::{collections::BTreeMap, num::NonZeroU32};

use orgstream_events::{Branding, ConnectionId, LoginMethod, MfaPolicy};
use serde_json::json;

use super::*;
use crate::testing::{fields, given, rejection};

fn create(name: &str) -> OrganizationCommand {
    let (name, slug) = (name.to_owned(), "acme".parse().unwrap());
    let command = CreateOrganization { name, slug, tenant_type: organization(), auth0_organization_id: None };
    OrganizationCommand::Create { command, region: "local".to_owned(), identity: None }
}

fn created() -> OrganizationEvent {
    OrganizationEvent::Created(OrganizationCreated {
        name: "Acme".to_owned(),
        slug: "acme".parse().unwrap(),
        tenant_type: TenantType::Organization,
        region: "local".to_owned(),
    })
}

fn suspended() -> OrganizationEvent {
    OrganizationEvent::Suspended(OrganizationSuspended { reason: "unpaid".to_owned() })
}

fn settings_by(patch: serde_json::Value, by: Option<(LoginMethod, bool)>) -> OrganizationCommand {
    let methods = SignInMethods { connections: [sso()].into(), by };
    OrganizationCommand::ChangeSettings {
        command: serde_json::from_value(patch).unwrap(),
        local: false,
        methods,
        webhooks: None,
    }
}

/// The one connection of the organization.
fn sso() -> LoginMethod {
    LoginMethod::sso(ConnectionId::fresh(1, [5; 10]))
}

fn settings(patch: serde_json::Value) -> OrganizationCommand {
    settings_by(patch, Some((LoginMethod::oidc(), true)))
}

fn settings_changed(api_key_max_days: Option<u32>, metadata: &[(&str, &str)]) -> OrganizationEvent {
    let custom_metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    OrganizationEvent::SettingsChanged(OrganizationSettingsChanged {
        settings: OrganizationSettings { api_key_max_days, custom_metadata, ..OrganizationSettings::default() },
        reason: None,
    })
}

#[test]
fn an_organization_begins_with_its_names() {
    assert_eq!(given::<Organization>(&[]).when(create("Acme")), Ok(vec![created()]));
}

#[test]
fn s5_37_a_personal_organization_begins_on_the_trial_plan_and_keeps_it_when_it_is_upgraded() {
    let OrganizationCommand::Create { command, region, identity } = create("Ann") else { unreachable!() };
    let command = CreateOrganization { tenant_type: TenantType::Personal, ..command };
    let begun = given::<Organization>(&[]).when(OrganizationCommand::Create { command, region, identity }).unwrap();
    let [OrganizationEvent::Created(created), OrganizationEvent::PlanChanged(changed)] = begun.as_slice() else {
        panic!("{begun:?}")
    };
    assert_eq!((created.tenant_type, &changed.plan), (TenantType::Personal, &PlanName::trial()));
    let upgrade = UpgradeOrganization { tenant_type: TenantType::Organization };
    let upgraded =
        given::<Organization>(&begun).when(OrganizationCommand::Upgrade { command: upgrade, identity: None });
    let after = given::<Organization>(&[begun, upgraded.unwrap()].concat());
    let profile = after.0.profile().unwrap();
    assert_eq!((profile.tenant_type, &profile.plan), (TenantType::Organization, &PlanName::trial()));
}

#[test]
fn the_type_is_organization_unless_said_otherwise() {
    let command: CreateOrganization = serde_json::from_value(json!({"name": "Acme", "slug": "acme"})).unwrap();
    assert_eq!(command.tenant_type, TenantType::Organization);
}

#[test]
fn what_stands_for_it_elsewhere_is_linked_in_the_same_commit() {
    let OrganizationCommand::Create { command, region, .. } = create("Acme") else { unreachable!() };
    let identity = ExternalIdentity { provider: "auth0".to_owned(), external_id: "org_x1".to_owned() };
    let create = |command, identity| OrganizationCommand::Create { command, region: region.clone(), identity };
    let linked = OrganizationEvent::from(identity.clone());
    let decided = given::<Organization>(&[]).when(create(command.clone(), Some(identity.clone())));
    assert_eq!(decided, Ok(vec![created(), linked.clone()]));
    let upgrade = OrganizationCommand::Upgrade {
        command: UpgradeOrganization { tenant_type: TenantType::Team },
        identity: Some(identity),
    };
    let decided = given::<Organization>(&[personal()]).when(upgrade).unwrap();
    assert_eq!(decided[1], linked);
    for bad in ["", "org_", "x", "org_a b"] {
        let command = CreateOrganization { auth0_organization_id: Some(bad.to_owned()), ..command.clone() };
        let found = fields(given::<Organization>(&[]).when(create(command, None)));
        assert_eq!(found[0].0, "/auth0_organization_id", "{bad}");
    }
}

#[test]
fn nobody_takes_a_way_in_that_they_could_not_give_back() {
    let active = given::<Organization>(&[created()]);
    let (oidc, key) = (LoginMethod::oidc(), LoginMethod::api_key());
    let only_sso = json!({"allowed_auth_methods": [sso()]});
    let required = json!({"mfa_policy": "required"});
    let refused = |patch: &serde_json::Value, by| rejection(active.when(settings_by(patch.clone(), by))).code;
    for by in [None, Some((key.clone(), false)), Some((oidc.clone(), true))] {
        assert_eq!(refused(&only_sso, by), "would_lock_out");
    }
    for by in [None, Some((key.clone(), false)), Some((oidc.clone(), false)), Some((sso(), false))] {
        assert_eq!(refused(&required, by), "would_lock_out");
    }
    assert!(active.when(settings_by(only_sso.clone(), Some((sso(), false)))).is_ok());
    assert!(active.when(settings_by(required, Some((oidc.clone(), true)))).is_ok());
    // A change that keeps all sign-in methods is open to every principal that may change settings.
    let open = json!({"allowed_auth_methods": [sso(), "oidc", "api_key"]});
    let [event] = active.when(settings_by(open, Some((oidc, false)))).unwrap().try_into().unwrap();
    let narrow = given::<Organization>(&[created(), event.clone()]);
    let without_keys = json!({"allowed_auth_methods": [sso(), "oidc"], "api_key_max_days": 9});
    assert!(narrow.when(settings_by(without_keys, Some((key, false)))).is_ok());
    let foreign = json!({"allowed_auth_methods": [LoginMethod::sso(ConnectionId::fresh(1, [6; 10])), "oidc"]});
    let found = fields(active.when(settings_by(foreign, Some((sso(), true)))));
    assert_eq!(found, [("/allowed_auth_methods".to_owned(), "unknown_connection".to_owned())]);
    // And the platform's operator restores sign-in, whatever was left.
    let restore = || OrganizationCommand::RestoreSignIn(RestoreSignIn { reason: "ticket 4711".to_owned() });
    let restored = narrow.when(restore()).unwrap();
    let [OrganizationEvent::SettingsChanged(after)] = restored.as_slice() else { panic!("{restored:?}") };
    assert_eq!((after.settings.allowed_auth_methods.as_ref(), after.reason.as_deref()), (None, Some("ticket 4711")));
    assert_eq!(active.when(restore()), Ok(vec![]));
}

#[test]
fn it_cannot_be_created_twice() {
    let refused = rejection(given::<Organization>(&[created()]).when(create("Acme")));
    assert_eq!((refused.code, refused.kind.status()), ("organization_exists", 409));
}

#[test]
fn an_empty_name_is_refused_with_a_pointer() {
    let found = fields(given::<Organization>(&[]).when(create("  ")));
    assert_eq!(found, [("/name".to_owned(), "too_short".to_owned())]);
}

#[test]
fn s5_8_a_type_of_tenant_has_two_names_in_any_case() {
    for (text, wanted) in [
        ("tenant", TenantType::Organization),
        ("ORGANIZATION", TenantType::Organization),
        ("Team", TenantType::Team),
        ("workspace", TenantType::Workspace),
    ] {
        let command = serde_json::from_value(json!({"name": "Acme", "slug": "acme", "tenant_type": text}));
        let command: CreateOrganization = command.unwrap();
        assert_eq!(command.tenant_type, wanted, "{text}");
        let upgrade: UpgradeOrganization = serde_json::from_value(json!({"tenant_type": text})).unwrap();
        assert_eq!(upgrade.tenant_type, wanted, "{text}");
    }
    let unknown = json!({"name": "Acme", "slug": "acme", "tenant_type": "club"});
    assert!(serde_json::from_value::<CreateOrganization>(unknown).unwrap_err().to_string().contains("club"));
}

#[test]
fn a_slug_that_means_something_else_is_refused() {
    for slug in ["current", "personal-x"] {
        let slug: Slug = slug.parse().unwrap();
        let rename = OrganizationCommand::Rename(RenameOrganization { slug: Some(slug.clone()), name: None });
        let reserved = [("/slug".to_owned(), "reserved".to_owned())];
        assert_eq!(fields(given::<Organization>(&[created()]).when(rename)), reserved);
        let OrganizationCommand::Create { mut command, region, .. } = create("Acme") else { unreachable!() };
        command.slug = slug;
        let begin = OrganizationCommand::Create { command: command.clone(), region: region.clone(), identity: None };
        assert_eq!(fields(given::<Organization>(&[]).when(begin)), reserved);
        command.tenant_type = TenantType::Personal;
        assert!(
            given::<Organization>(&[]).when(OrganizationCommand::Create { command, region, identity: None }).is_ok()
        );
    }
}

#[test]
fn nobody_locks_all_people_out() {
    let none = settings(json!({"allowed_auth_methods": ["api_key"]}));
    let refused = [("/allowed_auth_methods".to_owned(), "no_way_for_people".to_owned())];
    assert_eq!(fields(given::<Organization>(&[created()]).when(none)), refused);
    let changed = given::<Organization>(&[created()])
        .when(settings(json!({"allowed_auth_methods": ["oidc"], "mfa_policy": "required"})))
        .unwrap();
    let OrganizationEvent::SettingsChanged(event) = &changed[0] else { panic!("{changed:?}") };
    assert_eq!(event.settings.allowed_auth_methods, Some([LoginMethod::oidc()].into()));
    assert_eq!(event.settings.mfa_policy, MfaPolicy::Required);
    let mut after = vec![created()];
    after.extend(changed);
    let back = settings(json!({"allowed_auth_methods": null, "mfa_policy": "optional"}));
    let OrganizationEvent::SettingsChanged(event) = &given::<Organization>(&after).when(back).unwrap()[0] else {
        panic!()
    };
    assert_eq!(event.settings, OrganizationSettings::default());
}

#[test]
fn a_rename_keeps_what_it_does_not_mention() {
    let rename = RenameOrganization { slug: Some("acme-2".parse().unwrap()), name: None };
    let renamed = OrganizationRenamed { name: "Acme".to_owned(), slug: "acme-2".parse().unwrap() };
    assert_eq!(
        given::<Organization>(&[created()]).when(OrganizationCommand::Rename(rename)),
        Ok(vec![OrganizationEvent::Renamed(renamed)])
    );
}

#[test]
fn a_rename_to_the_same_names_changes_nothing() {
    let rename = RenameOrganization { name: Some("Acme".to_owned()), slug: None };
    assert_eq!(given::<Organization>(&[created()]).when(OrganizationCommand::Rename(rename)), Ok(vec![]));
}

#[test]
fn a_rename_to_nothing_is_refused() {
    let rename = OrganizationCommand::Rename(RenameOrganization::default());
    assert_eq!(fields(given::<Organization>(&[created()]).when(rename))[0].1, "required");
}

#[test]
fn settings_that_are_not_mentioned_stay() {
    let before = settings_changed(Some(90), &[("crm", "42"), ("tier", "gold")]);
    let change = settings(json!({"custom_metadata": {"tier": null, "city": "Oslo"}}));
    assert_eq!(
        given::<Organization>(&[created(), before]).when(change),
        Ok(vec![settings_changed(Some(90), &[("city", "Oslo"), ("crm", "42")])])
    );
}

#[test]
fn a_null_takes_a_setting_away() {
    let before = settings_changed(Some(90), &[]);
    let change = settings(json!({"api_key_max_days": null}));
    assert_eq!(given::<Organization>(&[created(), before.clone()]).when(change), Ok(vec![settings_changed(None, &[])]));
    assert_eq!(given::<Organization>(&[created(), before]).when(settings(json!({}))), Ok(vec![]));
}

#[test]
fn unknown_settings_are_refused() {
    let error = serde_json::from_value::<ChangeSettings>(json!({"apikeymaxdays": 3})).unwrap_err();
    assert!(error.to_string().contains("unknown field"), "{error}");
}

fn personal() -> OrganizationEvent {
    let OrganizationEvent::Created(created) = created() else { unreachable!() };
    OrganizationEvent::Created(OrganizationCreated { tenant_type: TenantType::Personal, ..created })
}

fn upgrade(to: TenantType) -> OrganizationCommand {
    OrganizationCommand::Upgrade { command: UpgradeOrganization { tenant_type: to }, identity: None }
}

#[test]
fn a_personal_organization_is_upgraded_once() {
    let upgraded = OrganizationEvent::Upgraded(OrganizationUpgraded { tenant_type: TenantType::Team });
    assert_eq!(given::<Organization>(&[personal()]).when(upgrade(TenantType::Team)), Ok(vec![upgraded.clone()]));
    let team = given::<Organization>(&[personal(), upgraded]);
    assert_eq!(team.when(upgrade(TenantType::Team)), Ok(vec![]));
    assert_eq!(rejection(team.when(upgrade(TenantType::Workspace))).code, "not_a_personal_organization");
    let found = fields(given::<Organization>(&[personal()]).when(upgrade(TenantType::Personal)));
    assert_eq!(found[0].0, "/tenant_type");
}

#[test]
fn what_is_about_others_is_refused_to_a_personal_organization() {
    let organization = given::<Organization>(&[personal()]);
    for change in [
        json!({"branding": {"primary_color": "#0a84ff"}}),
        json!({"invite_policy": "none"}),
        json!({"jit_provisioning": "restricted"}),
        json!({"allowed_domains": ["acme.example"]}),
    ] {
        assert_eq!(rejection(organization.when(settings(change))).code, "personal_organization");
    }
    assert!(organization.when(settings(json!({"api_key_max_days": 3}))).is_ok());
}

#[test]
fn branding_is_changed_field_by_field() {
    let organization = given::<Organization>(&[created()]);
    let first = settings(json!({"branding": {"primary_color": "#0a84ff", "support_email": "help@acme.example"}}));
    let Ok(events) = organization.when(first) else { panic!() };
    let cleared = settings(json!({"branding": {"support_email": null}}));
    let after = given::<Organization>(&[&[created()], events.as_slice()].concat()).when(cleared).unwrap();
    let [OrganizationEvent::SettingsChanged(after)] = after.as_slice() else { panic!("{after:?}") };
    let expected = Branding { primary_color: Some("#0a84ff".to_owned()), ..Branding::default() };
    assert_eq!(after.settings.branding, expected);
    let bad = json!({"branding": {"logo_url": "http://x", "primary_color": "blue", "support_email": "x"}});
    assert_eq!(fields(organization.when(settings(bad))).len(), 3);
}

#[test]
fn s4_11_reserved_slugs_are_refused_and_existing_ones_kept() {
    let admin = || "admin".parse::<Slug>().unwrap();
    let OrganizationCommand::Create { command, region, identity } = create("Acme") else { unreachable!() };
    let command = CreateOrganization { slug: admin(), ..command };
    let create = OrganizationCommand::Create { command, region, identity };
    assert_eq!(fields(given::<Organization>(&[]).when(create)), [("/slug".to_owned(), "reserved".to_owned())]);
    let OrganizationEvent::Created(before) = created() else { unreachable!() };
    let old = OrganizationEvent::Created(OrganizationCreated { slug: admin(), ..before });
    let rename = RenameOrganization { name: Some("New".to_owned()), slug: Some(admin()) };
    assert!(given::<Organization>(&[old]).when(OrganizationCommand::Rename(rename.clone())).is_ok());
    assert!(given::<Organization>(&[created()]).when(OrganizationCommand::Rename(rename)).is_err());
}

#[test]
fn metadata_is_bounded() {
    let organization = given::<Organization>(&[created()]);
    let many: BTreeMap<_, _> = (0..51).map(|n| (n.to_string(), "x")).collect();
    assert_eq!(fields(organization.when(settings(json!({"custom_metadata": many}))))[0].1, "too_many");
    let long = json!({"custom_metadata": {"k".repeat(41): "x", "a/b": "v".repeat(501)}});
    let found = fields(organization.when(settings(long)));
    assert_eq!(found[0], ("/custom_metadata/a~1b".to_owned(), "too_long".to_owned()));
    assert_eq!(found.len(), 2);
    assert_eq!(fields(organization.when(settings(json!({"custom_metadata": {"k": "\0"}}))))[0].1, "control_character");
}

#[test]
fn the_life_of_keys_has_bounds() {
    for days in [0, 3651] {
        let change = settings(json!({"api_key_max_days": days}));
        assert_eq!(fields(given::<Organization>(&[created()]).when(change))[0].0, "/api_key_max_days");
    }
}

#[test]
fn a_suspended_organization_cannot_be_changed() {
    let refused = rejection(given::<Organization>(&[created(), suspended()]).when(settings(json!({}))));
    assert_eq!((refused.code, refused.kind.status()), ("organization_suspended", 403));
    assert!(refused.detail.contains("unpaid"), "{refused}");
}

#[test]
fn a_resumed_organization_works_again() {
    let resumed = OrganizationEvent::Resumed(OrganizationResumed { reason: "paid".to_owned() });
    let resume = OrganizationCommand::Resume(ResumeOrganization { reason: "paid".to_owned() });
    assert_eq!(given::<Organization>(&[created(), suspended()]).when(resume.clone()), Ok(vec![resumed.clone()]));
    assert!(given::<Organization>(&[created(), suspended(), resumed]).0.must_be_active().is_ok());
    assert_eq!(rejection(given::<Organization>(&[created()]).when(resume)).code, "organization_not_suspended");
}

fn change_plan(plan: &str) -> OrganizationCommand {
    OrganizationCommand::ChangePlan(ChangePlan { plan: plan.parse().unwrap() })
}

#[test]
fn a_plan_is_changed_once() {
    let changed = OrganizationEvent::PlanChanged(OrganizationPlanChanged { plan: "enterprise".parse().unwrap() });
    assert_eq!(given::<Organization>(&[created()]).when(change_plan("enterprise")), Ok(vec![changed.clone()]));
    assert_eq!(given::<Organization>(&[created(), changed.clone()]).when(change_plan("enterprise")), Ok(vec![]));
    assert!(given::<Organization>(&[created(), changed]).when(change_plan("standard")).is_ok_and(|all| all.len() == 1));
    assert_eq!(given::<Organization>(&[created()]).when(change_plan("standard")), Ok(vec![]));
}

#[test]
fn limits_are_its_own_or_those_of_its_plan() {
    let change = |rate| {
        OrganizationCommand::ChangeLimits(ChangeLimits {
            commands_per_second: NonZeroU32::new(rate),
            ..ChangeLimits::default()
        })
    };
    let changed = |rate| {
        let limits = OrganizationLimits { commands_per_second: NonZeroU32::new(rate), ..OrganizationLimits::default() };
        OrganizationEvent::LimitsChanged(OrganizationLimitsChanged { limits })
    };
    assert_eq!(given::<Organization>(&[created()]).when(change(50)), Ok(vec![changed(50)]));
    assert_eq!(given::<Organization>(&[created(), suspended()]).when(change(50)), Ok(vec![changed(50)]));
    assert_eq!(given::<Organization>(&[created(), changed(50)]).when(change(50)), Ok(vec![]));
    assert_eq!(given::<Organization>(&[created(), changed(50)]).when(change(0)), Ok(vec![changed(0)]));
    assert_eq!(given::<Organization>(&[created()]).when(change(0)), Ok(vec![]));
    assert_eq!(rejection(given::<Organization>(&[]).when(change(50))).code, "not_found");
}

#[test]
fn what_an_organization_has_booked_can_change_while_it_is_suspended() {
    let changed = given::<Organization>(&[created(), suspended()]).when(change_plan("enterprise"));
    assert!(changed.is_ok_and(|events| events.len() == 1));
    assert_eq!(rejection(given::<Organization>(&[]).when(change_plan("enterprise"))).code, "not_found");
}

#[test]
fn nothing_can_be_asked_of_an_organization_that_does_not_exist() {
    let suspend = OrganizationCommand::Suspend(SuspendOrganization { reason: "x".to_owned() });
    assert_eq!(rejection(given::<Organization>(&[]).when(suspend)).code, "not_found");
}

#[test]
fn a_webhook_is_set_where_the_quota_has_one_and_a_smaller_quota_takes_none_away() {
    let set = |url: &str, most: Option<u64>| {
        let webhooks = most.map(|most| crate::quota::QuotaLimit {
            most,
            source: crate::plan::LimitSource::Plan,
            plan: "public".parse().unwrap(),
        });
        let command = serde_json::from_value(serde_json::json!({"audit_webhook": url})).unwrap();
        OrganizationCommand::ChangeSettings { command, local: false, methods: SignInMethods::default(), webhooks }
    };
    let (one, other) = ("https://siem.acme.example/a", "https://siem.acme.example/b");
    assert_eq!(rejection(given::<Organization>(&[created()]).when(set(one, Some(0)))).code, "webhooks_quota_exceeded");
    for most in [None, Some(1)] {
        let events = given::<Organization>(&[created()]).when(set(one, most)).unwrap();
        let all = [vec![created()], events].concat();
        assert_eq!(given::<Organization>(&all).when(set(other, Some(0))).map(|events| events.len()), Ok(1));
    }
}
