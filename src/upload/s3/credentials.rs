//! Who is asking, and where: from the command line, the environment and the files that the AWS tools use.
//!
//! As they do: what is named on the command line counts first, then the environment, then the profile. A profile named on
//! the command line beats keys in the environment. Nothing is run and nothing is asked over the network for credentials.
//!
//! Invariant: no message has a secret in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use url::Url;

use crate::upload::S3Options;

/// No such file of anybody's is longer.
const MAX_FILE: u64 = 1 << 20;
/// What a service without regions is told, and what most that have one accept.
const ANY_REGION: &str = "us-east-1";
/// Services that write their region into their hosts' names: `s3.REGION.` and this.
const REGIONAL: [&str; 4] = ["amazonaws.com", "backblazeb2.com", "wasabisys.com", "scw.cloud"];
/// Settings of a profile that say where credentials come from, in ways that are not for us.
const ELSEWHERE: [&str; 7] = [
    "sso_session",
    "sso_start_url",
    "login_session",
    "role_arn",
    "source_profile",
    "credential_process",
    "web_identity_token_file",
];

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `--endpoint`.
    pub endpoint: Option<String>,
    /// `--region`.
    pub region: Option<String>,
    /// `--profile`.
    pub profile: Option<String>,
}

/// Why it is not known who is asking, or where; says where it was looked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CredentialsError(String);

/// Finds out who is asking and where the service is. `variable` looks up a variable of the environment.
///
/// # Errors
/// [`CredentialsError`] where something is missing, cannot be read or is not supported.
pub fn find(given: &Given, variable: impl Fn(&str) -> Option<String>) -> Result<S3Options, CredentialsError> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let profile = Profile::read(given, &variable)?;
    let keys = match keys_of_environment(&variable)? {
        Some(keys) if given.profile.is_none() => keys,
        _ => profile.keys()?,
    };
    let endpoint = endpoint(given, &variable, &profile)?;
    let region = [
        given.region.clone(),
        variable("AWS_REGION"),
        variable("AWS_DEFAULT_REGION"),
        profile.get("region"),
    ];
    let region = region
        .into_iter()
        .flatten()
        .next()
        .or_else(|| region_of(endpoint.as_ref()?));
    let region = region.ok_or_else(|| {
        CredentialsError(format!(
            "no region: give --region, set AWS_REGION, or `region` for profile `{}` in {}; for another service than AWS \
             give --endpoint",
            profile.name,
            profile.config.display()
        ))
    })?;
    let (access_key, secret_key, session_token) = keys;
    Ok(S3Options {
        endpoint,
        region,
        access_key,
        secret_key,
        session_token,
    })
}

/// Access key, secret key, session token.
type Keys = (String, String, Option<String>);

fn keys_of_environment(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Keys>, CredentialsError> {
    match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
        (Some(access), Some(secret)) => Ok(Some((access, secret, variable("AWS_SESSION_TOKEN")))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(CredentialsError(
            "AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not".into(),
        )),
        (None, Some(_)) => Err(CredentialsError(
            "AWS_SECRET_ACCESS_KEY is set, but AWS_ACCESS_KEY_ID is not".into(),
        )),
    }
}

fn endpoint(
    given: &Given,
    variable: &dyn Fn(&str) -> Option<String>,
    profile: &Profile,
) -> Result<Option<Url>, CredentialsError> {
    let ignored = variable("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let configured = || {
        let set = |name: &'static str| variable(name).map(|value| (name, value));
        let of_profile = || Some(("endpoint_url", profile.get("endpoint_url")?));
        set("AWS_ENDPOINT_URL_S3")
            .or_else(|| set("AWS_ENDPOINT_URL"))
            .or_else(of_profile)
    };
    let named = given.endpoint.clone().map(|value| ("--endpoint", value));
    let Some((from, value)) = named.or_else(|| if ignored { None } else { configured() }) else {
        return Ok(None);
    };
    let url = Url::parse(&value).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some());
    url.map(Some).ok_or_else(|| {
        CredentialsError(format!(
            "{from}: `{value}` is no service's address; write https://HOST[:PORT]"
        ))
    })
}

/// The region in the host's name, where the service is known to write it there; elsewhere any will do.
fn region_of(endpoint: &Url) -> Option<String> {
    let host = endpoint.host_str()?;
    let named = REGIONAL.iter().find_map(|domain| {
        let region = host
            .strip_suffix(domain)?
            .strip_suffix('.')?
            .strip_prefix("s3.")?;
        (!region.contains('.') && !region.is_empty()).then(|| region.to_owned())
    });
    Some(named.unwrap_or_else(|| ANY_REGION.to_owned()))
}

/// What the files say of one profile.
#[derive(Debug)]
struct Profile {
    name: String,
    credentials: PathBuf,
    config: PathBuf,
    /// `None`: neither file knows it.
    settings: Option<Settings>,
}

type Settings = BTreeMap<String, String>;

impl Profile {
    fn read(given: &Given, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, CredentialsError> {
        let named = given.profile.clone().or_else(|| variable("AWS_PROFILE"));
        let home = variable("HOME").map(PathBuf::from).unwrap_or_default();
        let place = |name: &str, file: &str| {
            variable(name).map_or_else(|| home.join(".aws").join(file), |path| expanded(&path, &home))
        };
        let credentials = place("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let config = place("AWS_CONFIG_FILE", "config");
        let name = named.clone().unwrap_or_else(|| "default".to_owned());
        let mut settings = section(&config, |header| {
            let named = header
                .strip_prefix("profile")
                .filter(|rest| rest.starts_with([' ', '\t']));
            named.map(str::trim) == Some(&name) || header == "default" && name == "default"
        })?;
        if let Some(more) = section(&credentials, |header| header == name)? {
            settings.get_or_insert_default().extend(more);
        }
        let profile = Self {
            name,
            credentials,
            config,
            settings,
        };
        if profile.settings.is_none() && named.is_some() {
            return Err(CredentialsError(format!(
                "there is no profile `{}` in {} or {}",
                profile.name,
                profile.credentials.display(),
                profile.config.display()
            )));
        }
        Ok(profile)
    }

    fn get(&self, name: &str) -> Option<String> {
        self.settings.as_ref()?.get(name).cloned()
    }

    fn keys(&self) -> Result<Keys, CredentialsError> {
        if let (Some(access), Some(secret)) =
            (self.get("aws_access_key_id"), self.get("aws_secret_access_key"))
        {
            return Ok((access, secret, self.get("aws_session_token")));
        }
        let elsewhere = ELSEWHERE.iter().find(|name| self.get(name).is_some());
        Err(CredentialsError(match elsewhere {
            Some(setting) => format!(
                "profile `{name}` has its credentials from elsewhere (`{setting}`), which is not supported: run \
                 `eval \"$(aws configure export-credentials --profile {name} --format env)\"` and try again",
                name = self.name
            ),
            None => format!(
                "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or aws_access_key_id and \
                 aws_secret_access_key for profile `{}` in {} (looked there and in {})",
                self.name,
                self.credentials.display(),
                self.config.display()
            ),
        }))
    }
}

fn expanded(path: &str, home: &Path) -> PathBuf {
    path.strip_prefix("~/")
        .map_or_else(|| PathBuf::from(path), |rest| home.join(rest))
}

/// The settings in the sections whose header is `wanted`; `None` where there is none, or no such file.
fn section(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Option<Settings>, CredentialsError> {
    let unreadable =
        |why: &dyn std::fmt::Display| CredentialsError(format!("cannot read {}: {why}", path.display()));
    let mut text = String::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&error)),
        Ok(file) => file
            .take(MAX_FILE + 1)
            .read_to_string(&mut text)
            .map_err(|error| unreadable(&error))?,
    };
    if text.len() as u64 > MAX_FILE {
        return Err(unreadable(&"it has more than 1 MiB"));
    }
    Ok(settings(&text, wanted))
}

fn settings(text: &str, wanted: impl Fn(&str) -> bool) -> Option<Settings> {
    let mut found = None;
    let mut within = false;
    for line in text.lines() {
        let plain = line.trim();
        if plain.is_empty() || plain.starts_with(['#', ';']) {
            continue;
        }
        if let Some(header) = plain.strip_prefix('[') {
            let header = header.split(']').next().unwrap_or_default().trim();
            within = wanted(header);
            if within {
                found.get_or_insert_with(Settings::new);
            }
        } else if let (Some(found), false) =
            (found.as_mut().filter(|_| within), line.starts_with([' ', '\t']))
        {
            // What is indented belongs to a setting that has several.
            if let Some((name, value)) = plain.split_once('=') {
                let value = value.split(" #").next().unwrap_or_default().trim();
                if !value.is_empty() {
                    found.insert(name.trim().to_ascii_lowercase(), value.to_owned());
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const CREDENTIALS: &str = "; mine\n[default]\naws_access_key_id = AKDEF\naws_secret_access_key=SKDEF\n\n[work]\n\
        AWS_ACCESS_KEY_ID = AKWORK\naws_secret_access_key = SK/work+=\naws_session_token = TOKEN # short-lived\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\ns3 =\n  addressing_style = path\n  region = nowhere\n\
        [profile work]\nregion = eu-north-1\nendpoint_url = https://s3.work.example\n\
        [profile sso]\nsso_session = corp\nregion = us-west-2\n[work]\nregion = not-this\n";

    struct Home {
        home: TempDir,
        set: Vec<(&'static str, String)>,
        given: Given,
    }

    impl Home {
        fn new() -> Self {
            let home = TempDir::new().unwrap();
            std::fs::create_dir(home.path().join(".aws")).unwrap();
            std::fs::write(home.path().join(".aws/credentials"), CREDENTIALS).unwrap();
            std::fs::write(home.path().join(".aws/config"), CONFIG).unwrap();
            Self {
                home,
                set: Vec::new(),
                given: Given::default(),
            }
        }

        fn empty() -> Self {
            Self {
                home: TempDir::new().unwrap(),
                set: Vec::new(),
                given: Given::default(),
            }
        }

        fn set(mut self, name: &'static str, value: &str) -> Self {
            self.set.push((name, value.to_owned()));
            self
        }

        fn find(&self) -> Result<S3Options, CredentialsError> {
            find(&self.given, |name| {
                if name == "HOME" {
                    return Some(self.home.path().display().to_string());
                }
                self.set
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| value.clone())
            })
        }

        fn told(&self) -> String {
            let told = self.find().unwrap_err().to_string();
            assert!(
                !["SKDEF", "SKENV", "SKX", "SK/work", "TOKEN #"]
                    .iter()
                    .any(|s| told.contains(s)),
                "{told}"
            );
            told
        }
    }

    fn keys(options: &S3Options) -> (&str, &str, Option<&str>) {
        (
            &options.access_key,
            &options.secret_key,
            options.session_token.as_deref(),
        )
    }

    #[test]
    fn the_default_profile_serves_where_nothing_is_said() {
        let found = Home::new().find().unwrap();
        assert_eq!(keys(&found), ("AKDEF", "SKDEF", None));
        assert_eq!((found.region.as_str(), found.endpoint), ("eu-west-1", None));
    }

    #[test]
    fn keys_in_the_environment_beat_its_profile_but_not_one_that_is_named() {
        let mut home = Home::new()
            .set("AWS_ACCESS_KEY_ID", "AKENV")
            .set("AWS_SECRET_ACCESS_KEY", "SKENV")
            .set("AWS_SESSION_TOKEN", "T")
            .set("AWS_PROFILE", "work");
        let found = home.find().unwrap();
        assert_eq!(keys(&found), ("AKENV", "SKENV", Some("T")));
        assert_eq!(
            found.region, "eu-north-1",
            "what the environment does not say is the profile's"
        );
        assert_eq!(found.endpoint.unwrap().as_str(), "https://s3.work.example/");
        home.given.profile = Some("work".into());
        assert_eq!(
            keys(&home.find().unwrap()),
            ("AKWORK", "SK/work+=", Some("TOKEN"))
        );
    }

    #[test]
    fn what_the_command_line_says_counts_first() {
        let mut home = Home::new()
            .set("AWS_REGION", "r1")
            .set("AWS_DEFAULT_REGION", "r2")
            .set("AWS_ENDPOINT_URL", "http://b.lan")
            .set("AWS_ENDPOINT_URL_S3", "http://a.lan");
        let found = home.find().unwrap();
        assert_eq!(
            (found.region.as_str(), found.endpoint.unwrap().as_str()),
            ("r1", "http://a.lan/")
        );
        home.given = Given {
            endpoint: Some("http://c.lan:9000".into()),
            region: Some("r0".into()),
            profile: None,
        };
        let found = home.find().unwrap();
        assert_eq!(
            (found.region.as_str(), found.endpoint.unwrap().as_str()),
            ("r0", "http://c.lan:9000/")
        );
        let home = home.set("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true");
        assert!(
            home.find().unwrap().endpoint.is_some(),
            "what is named is not what is configured"
        );
    }

    #[test]
    fn files_may_be_elsewhere() {
        let home = Home::empty();
        std::fs::write(home.home.path().join("keys"), CREDENTIALS).unwrap();
        let home = home
            .set("AWS_SHARED_CREDENTIALS_FILE", "~/keys")
            .set("AWS_REGION", "r");
        assert_eq!(keys(&home.find().unwrap()), ("AKDEF", "SKDEF", None));
    }

    #[test]
    fn what_is_missing_is_told_with_where_it_was_looked_for() {
        let told = Home::empty().told();
        assert!(
            told.contains("AWS_ACCESS_KEY_ID")
                && told.contains(".aws/credentials")
                && told.contains(".aws/config"),
            "{told}"
        );
        let told = Home::empty().set("AWS_PROFILE", "none").told();
        assert!(told.contains("there is no profile `none` in "), "{told}");
        let told = Home::empty().set("AWS_ACCESS_KEY_ID", "AK").told();
        assert_eq!(told, "AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not");
    }

    #[test]
    fn credentials_from_elsewhere_are_told_with_a_way() {
        let told = Home::new().set("AWS_PROFILE", "sso").told();
        assert!(
            told.contains("`sso_session`")
                && told.contains("aws configure export-credentials --profile sso --format env"),
            "{told}"
        );
    }

    #[test]
    fn a_region_is_only_needed_for_aws() {
        let keys = || {
            Home::empty()
                .set("AWS_ACCESS_KEY_ID", "AK")
                .set("AWS_SECRET_ACCESS_KEY", "SKX")
        };
        assert!(
            keys()
                .told()
                .starts_with("no region: give --region, set AWS_REGION")
        );
        for (endpoint, region) in [
            ("http://nas.lan:9000", "us-east-1"),
            ("https://s3.us-west-002.backblazeb2.com", "us-west-002"),
            ("https://s3.eu-central-1.amazonaws.com", "eu-central-1"),
            ("https://s3.home.nas.lan", "us-east-1"),
            ("https://s3..scw.cloud", "us-east-1"),
        ] {
            let found = keys().set("AWS_ENDPOINT_URL", endpoint).find().unwrap();
            assert_eq!(found.region, region, "{endpoint}");
        }
    }

    #[test]
    fn an_address_that_is_none_is_told_with_where_it_stands() {
        for bad in ["nas.lan", "nas.lan:9000", "ftp://x", "https://"] {
            let told = Home::new().set("AWS_ENDPOINT_URL", bad).told();
            assert!(
                told.starts_with("AWS_ENDPOINT_URL: ") && told.ends_with("write https://HOST[:PORT]"),
                "{told}"
            );
        }
    }

    #[test]
    fn files_that_are_none_of_ours_are_refused() {
        let home = Home::empty();
        std::fs::write(home.home.path().join("long"), "#".repeat(MAX_FILE as usize + 1)).unwrap();
        assert!(
            home.set("AWS_CONFIG_FILE", "~/long")
                .told()
                .contains("more than 1 MiB")
        );
        let home = Home::empty();
        std::fs::write(home.home.path().join("binary"), [0xff, 0xfe]).unwrap();
        assert!(
            home.set("AWS_CONFIG_FILE", "~/binary")
                .told()
                .contains("cannot read")
        );
        for odd in [
            "[",
            "]",
            "=",
            "[default",
            "[default]\n=\n==x",
            "[profile]\na=b",
            "\u{feff}[default]\n",
        ] {
            let _ = settings(odd, |_| true);
        }
    }
}
