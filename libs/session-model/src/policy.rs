//! What a realm demands of its sessions, and the presets that regulations ask for.
//!
//! The numbers guide a configuration; they are no legal advice and claim no certification.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Limits, Seconds};

/// What happens to a session that would exceed the cap on sessions per subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BeyondCap {
    /// The new session is refused.
    Deny,
    /// The session created longest ago is ended first.
    EvictOldest,
    /// The session used longest ago is ended first.
    EvictLeastRecent,
}

/// What the use of a rotated token, after its overlap, leads to. It is recorded in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReusedToken {
    /// Only recorded.
    Record,
    /// The session ends: whoever holds its newer token may be the thief.
    End,
}

/// A named preset that a realm starts from and may only tighten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// OWASP Session Management Cheat Sheet, low-risk application.
    Default,
    /// HIPAA Security Rule, 45 CFR 164.312 and 164.316.
    Hipaa,
    /// PCI DSS 4.0.1.
    PciDss,
    /// SOX and 17 CFR 210.2-06.
    Sox,
    /// NIST SP 800-63B-4, authenticator assurance level 2.
    NistAal2,
    /// NIST SP 800-63B-4, authenticator assurance level 3.
    NistAal3,
    /// State that needs no record: no log stands behind it.
    Transient,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Self; 7] =
        [Self::Default, Self::Hipaa, Self::PciDss, Self::Sox, Self::NistAal2, Self::NistAal3, Self::Transient];

    /// The name used in configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Hipaa => "hipaa",
            Self::PciDss => "pci_dss",
            Self::Sox => "sox",
            Self::NistAal2 => "nist_aal2",
            Self::NistAal3 => "nist_aal3",
            Self::Transient => "transient",
        }
    }

    /// The preset's policy: also the loosest a realm of this profile may be.
    pub fn policy(self) -> Policy {
        let base = Policy {
            idle_timeout: Seconds::minutes(30),
            absolute_timeout: Seconds::hours(12),
            renewal_interval: Seconds::minutes(15),
            renewal_overlap: Seconds(30),
            sessions_per_subject: 5,
            beyond_cap: BeyondCap::Deny,
            reused_token: ReusedToken::Record,
            audited_reads: false,
            retention_days: None,
            requests_per_second: 0,
            acknowledged_by: 0,
            limits: Limits::default(),
        };
        let regulated = Policy {
            idle_timeout: Seconds::minutes(15),
            sessions_per_subject: 3,
            reused_token: ReusedToken::End,
            ..base
        };
        match self {
            Self::Default | Self::Transient => base,
            Self::Hipaa => Policy { audited_reads: true, ..regulated },
            Self::PciDss | Self::Sox => regulated,
            Self::NistAal2 => Policy {
                idle_timeout: Seconds::hours(1),
                absolute_timeout: Seconds::hours(24),
                reused_token: ReusedToken::End,
                ..base
            },
            Self::NistAal3 => Policy { sessions_per_subject: 1, ..regulated },
        }
    }

    /// The least days for which what is sealed must be kept. Years are counted with every leap day that they may have.
    pub const fn retention_days_min(self) -> u32 {
        match self {
            Self::PciDss => 366,
            Self::Hipaa => 6 * 365 + 2,
            Self::Sox => 7 * 365 + 2,
            // A month, as the log's PostgreSQL function demands.
            Self::Default | Self::NistAal2 | Self::NistAal3 | Self::Transient => 30,
        }
    }

    /// The clause a field of this profile comes from.
    pub const fn clause(self, field: Field) -> &'static str {
        use Field as F;
        match (self, field) {
            (Self::Hipaa, F::IdleTimeout) => "45 CFR 164.312(a)(2)(iii), automatic logoff",
            (Self::Hipaa, F::AuditedReads) => "45 CFR 164.312(b), audit controls",
            (Self::Hipaa, F::AbsoluteTimeout) => "45 CFR 164.312(d), person or entity authentication",
            (Self::PciDss, F::IdleTimeout) => "PCI DSS 4.0.1 requirement 8.2.8",
            (Self::Sox, F::IdleTimeout | F::AbsoluteTimeout) => "SOX section 404, access controls",
            (Self::NistAal2, F::IdleTimeout | F::AbsoluteTimeout) => "NIST SP 800-63B-4 section 2.2.3",
            (Self::NistAal3, F::IdleTimeout | F::AbsoluteTimeout) => "NIST SP 800-63B-4 section 2.3.3",
            (Self::Hipaa, F::Retention) => "45 CFR 164.316(b)(2)(i), six years",
            (Self::PciDss, F::Retention) => "PCI DSS 4.0.1 requirement 10.5.1, twelve months",
            (Self::Sox, F::Retention) => "17 CFR 210.2-06, seven years",
            (_, F::Retention) => "what the log itself needs to be of use",
            (_, F::IdleTimeout) => "OWASP ASVS 5.0 7.3.1 and the Session Management Cheat Sheet",
            (_, F::AbsoluteTimeout) => "OWASP ASVS 5.0 7.3.2 and the Session Management Cheat Sheet",
            (_, F::RenewalInterval | F::RenewalOverlap) => "OWASP Session Management Cheat Sheet, renewal timeout",
            (_, F::SessionsPerSubject) => "OWASP ASVS 5.0 7.1.2",
            (_, F::ReusedToken) => "OWASP ASVS 5.0 7.2.4",
            (_, F::AuditedReads) => "OWASP ASVS 5.0 16.3",
            (_, F::Limits) => "the size of a log entry",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|profile| profile.name() == text).ok_or(())
    }
}

/// The fields of a policy that a profile bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `idle_timeout_s`
    IdleTimeout,
    /// `absolute_timeout_s`
    AbsoluteTimeout,
    /// `renewal_interval_s`
    RenewalInterval,
    /// `renewal_overlap_s`
    RenewalOverlap,
    /// `sessions_per_subject`
    SessionsPerSubject,
    /// `reused_token`
    ReusedToken,
    /// `audited_reads`
    AuditedReads,
    /// `retention_days`
    Retention,
    /// `max_attribute_bytes`, `max_attributes`
    Limits,
}

/// What a realm demands of its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// A session unused for this long has expired.
    pub idle_timeout: Seconds,
    /// A session this old has expired, used or not.
    pub absolute_timeout: Seconds,
    /// After this long a client should renew its token; answers say when (`renew_at`).
    pub renewal_interval: Seconds,
    /// How long the previous token is honoured after a renewal, for requests already under way.
    pub renewal_overlap: Seconds,
    /// Open sessions one subject may have.
    pub sessions_per_subject: u32,
    /// What happens beyond that.
    pub beyond_cap: BeyondCap,
    /// What the late use of a rotated token leads to.
    pub reused_token: ReusedToken,
    /// Whether reading a session by its id is itself an entry of the log.
    pub audited_reads: bool,
    /// Days after which what is sealed beside an entry may be dropped; `None`: never.
    pub retention_days: Option<u32>,
    /// Requests a second each credential of the realm may make; 0 is no limit.
    pub requests_per_second: u32,
    /// Other nodes that must have a change before it is answered, in a realm that keeps no log.
    pub acknowledged_by: u8,
    /// Size of attributes.
    pub limits: Limits,
}

/// What a realm sets differently from its profile; `None` keeps the preset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// Seconds without use until a session has expired.
    pub idle_timeout_s: Option<u32>,
    /// Seconds from creation until a session has expired.
    pub absolute_timeout_s: Option<u32>,
    /// Seconds until a client should renew its token.
    pub renewal_interval_s: Option<u32>,
    /// Seconds the previous token is honoured after a renewal.
    pub renewal_overlap_s: Option<u32>,
    /// Open sessions one subject may have.
    pub sessions_per_subject: Option<u32>,
    /// `deny`, `evict_oldest` or `evict_least_recent`.
    pub beyond_cap: Option<BeyondCap>,
    /// `record` or `end`.
    pub reused_token: Option<ReusedToken>,
    /// Whether reading a session by id is itself an entry.
    pub audited_reads: Option<bool>,
    /// Days after which what is sealed beside an entry may be dropped; absent is never.
    pub retention_days: Option<u32>,
    /// Requests a second each credential may make; 0 or absent is no limit.
    pub requests_per_second: Option<u32>,
    /// Other nodes that must have a change before it is answered.
    pub acknowledged_by: Option<u8>,
    /// Bytes of JSON the attributes of a session may take.
    pub max_attribute_bytes: Option<u32>,
    /// Top-level attributes a session may have.
    pub max_attributes: Option<u32>,
}

/// A realm asks for something its profile forbids: a start-up error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value} is looser than profile {profile} allows ({bound}; {clause})")]
pub struct Looser {
    /// The configuration key.
    pub field: &'static str,
    /// What was asked for.
    pub value: String,
    /// The profile's bound.
    pub bound: String,
    /// The profile.
    pub profile: &'static str,
    /// The clause the bound comes from.
    pub clause: &'static str,
}

impl Policy {
    /// A profile's policy with a realm's overrides.
    ///
    /// # Errors
    /// [`Looser`] for the first override that would loosen the profile, or be zero where that means nothing.
    pub fn tightened(profile: Profile, overrides: &Overrides) -> Result<Self, Looser> {
        let preset = profile.policy();
        let at_most = |name: &'static str, field: Field, asked: Option<u32>, bound: u32, least: u32| match asked {
            Some(value) if value > bound || value < least => Err(Looser {
                field: name,
                value: value.to_string(),
                bound: format!("{least} to {bound}"),
                profile: profile.name(),
                clause: profile.clause(field),
            }),
            Some(value) => Ok(value),
            None => Ok(bound),
        };
        let seconds =
            |name, field, asked, bound: Seconds, least| at_most(name, field, asked, bound.0, least).map(Seconds);
        let only = |name: &'static str, field: Field, loosened: bool, value: &str, bound: &str| {
            if !loosened {
                return Ok(());
            }
            let (value, bound) = (value.to_owned(), bound.to_owned());
            Err(Looser { field: name, value, bound, profile: profile.name(), clause: profile.clause(field) })
        };
        only(
            "reused_token",
            Field::ReusedToken,
            preset.reused_token == ReusedToken::End && overrides.reused_token == Some(ReusedToken::Record),
            "record",
            "end",
        )?;
        only(
            "audited_reads",
            Field::AuditedReads,
            preset.audited_reads && overrides.audited_reads == Some(false),
            "false",
            "true",
        )?;
        let least = profile.retention_days_min();
        only(
            "retention_days",
            Field::Retention,
            overrides.retention_days.is_some_and(|days| days < least),
            &overrides.retention_days.unwrap_or_default().to_string(),
            &format!("{least} or more, or absent for ever"),
        )?;
        let idle_timeout =
            seconds("idle_timeout_s", Field::IdleTimeout, overrides.idle_timeout_s, preset.idle_timeout, 1)?;
        let absolute_timeout = seconds(
            "absolute_timeout_s",
            Field::AbsoluteTimeout,
            overrides.absolute_timeout_s,
            preset.absolute_timeout,
            1,
        )?;
        let limit = |name, asked: Option<u32>, bound: usize| {
            at_most(name, Field::Limits, asked, u32::try_from(bound).unwrap_or(u32::MAX), 0)
                .map(|value| usize::try_from(value).unwrap_or(bound))
        };
        Ok(Self {
            idle_timeout,
            absolute_timeout,
            renewal_interval: seconds(
                "renewal_interval_s",
                Field::RenewalInterval,
                overrides.renewal_interval_s,
                preset.renewal_interval,
                1,
            )?,
            renewal_overlap: seconds(
                "renewal_overlap_s",
                Field::RenewalOverlap,
                overrides.renewal_overlap_s,
                preset.renewal_overlap,
                0,
            )?,
            sessions_per_subject: at_most(
                "sessions_per_subject",
                Field::SessionsPerSubject,
                overrides.sessions_per_subject,
                preset.sessions_per_subject,
                1,
            )?,
            beyond_cap: overrides.beyond_cap.unwrap_or(preset.beyond_cap),
            reused_token: overrides.reused_token.unwrap_or(preset.reused_token),
            audited_reads: overrides.audited_reads.unwrap_or(preset.audited_reads),
            retention_days: overrides.retention_days,
            requests_per_second: overrides.requests_per_second.unwrap_or(preset.requests_per_second),
            acknowledged_by: overrides.acknowledged_by.unwrap_or(preset.acknowledged_by),
            limits: Limits {
                bytes: limit("max_attribute_bytes", overrides.max_attribute_bytes, preset.limits.bytes)?,
                count: limit("max_attributes", overrides.max_attributes, preset.limits.count)?,
                ..preset.limits
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_looser_value_is_refused_and_names_its_clause() {
        let asked = Overrides { idle_timeout_s: Some(16 * 60), ..Overrides::default() };
        let refused = Policy::tightened(Profile::PciDss, &asked).unwrap_err();
        assert!(refused.to_string().contains("8.2.8"), "{refused}");
        let asked = Overrides { absolute_timeout_s: Some(12 * 3600 + 1), ..Overrides::default() };
        let refused = Policy::tightened(Profile::NistAal3, &asked).unwrap_err();
        assert!(refused.to_string().contains("800-63B-4 section 2.3.3"), "{refused}");
        let asked = Overrides { reused_token: Some(ReusedToken::Record), ..Overrides::default() };
        assert!(Policy::tightened(Profile::Hipaa, &asked).is_err());
        assert!(Policy::tightened(Profile::Default, &asked).is_ok());
    }

    #[test]
    fn what_is_sealed_is_kept_as_long_as_the_clause_says() {
        for (profile, days, clause) in
            [(Profile::Hipaa, 2_192, "164.316"), (Profile::PciDss, 366, "10.5.1"), (Profile::Sox, 2_557, "210.2-06")]
        {
            let of =
                |days| Policy::tightened(profile, &Overrides { retention_days: Some(days), ..Overrides::default() });
            assert_eq!(of(days).unwrap().retention_days, Some(days));
            let refused = of(days - 1).unwrap_err().to_string();
            assert!(refused.contains(clause) && refused.contains("or more"), "{refused}");
        }
        let asked = Overrides { retention_days: Some(29), ..Overrides::default() };
        assert!(Policy::tightened(Profile::Default, &asked).is_err());
        assert_eq!(Profile::Default.policy().retention_days, None);
    }

    #[test]
    fn every_profile_accepts_itself_and_something_tighter() {
        for profile in Profile::ALL {
            assert_eq!(profile.name().parse(), Ok(profile));
            assert_eq!(Policy::tightened(profile, &Overrides::default()), Ok(profile.policy()));
            let tighter = Overrides { idle_timeout_s: Some(1), sessions_per_subject: Some(1), ..Overrides::default() };
            let policy = Policy::tightened(profile, &tighter).unwrap();
            assert_eq!((policy.idle_timeout, policy.sessions_per_subject), (Seconds(1), 1));
        }
    }

    #[test]
    fn regulated_presets_carry_the_numbers_of_their_clauses() {
        for profile in [Profile::Hipaa, Profile::PciDss, Profile::Sox, Profile::NistAal3] {
            let policy = profile.policy();
            assert!(policy.idle_timeout <= Seconds::minutes(15) && policy.absolute_timeout <= Seconds::hours(12));
            assert_eq!(policy.reused_token, ReusedToken::End, "{profile}");
        }
        let aal2 = Profile::NistAal2.policy();
        assert_eq!((aal2.idle_timeout, aal2.absolute_timeout), (Seconds::hours(1), Seconds::hours(24)));
    }
}
