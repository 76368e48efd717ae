//! What a server's refusal means, in words that name the remedy.

/// The header that tells a bucket's region where another one was asked.
pub const BUCKET_REGION_HEADER: &str = "x-amz-bucket-region";

/// A refusal, as far as it is told.
#[derive(Debug, Clone, Copy)]
pub struct Refusal<'a> {
    /// The answer's status.
    pub status: u16,
    /// What [`BUCKET_REGION_HEADER`] says.
    pub bucket_region: Option<&'a str>,
    /// The answer's body.
    pub body: &'a str,
    /// Whether the request was signed.
    pub signed: bool,
    /// The region that it was signed for.
    pub region: &'a str,
}

impl Refusal<'_> {
    /// The server's own word for it, such as `NoSuchKey`.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.element("Code")
    }

    /// Cause and remedy, to stand behind the status; empty where there is nothing to add.
    #[must_use]
    pub fn explain(&self) -> String {
        let named = self.bucket_region.or_else(|| self.element("Region"));
        let elsewhere = named.filter(|region| *region != self.region && is_region(region));
        if let Some(region) = elsewhere {
            return format!(": the bucket is in region {region}: set s3.region to {region}");
        }
        // A server that gives no word of its own leaves the status to speak.
        let code = self.code().unwrap_or_default();
        let told = |text: &str| format!(": {text}");
        match (self.status, code) {
            (301 | 307, _)
            | (
                400,
                "AuthorizationQueryParametersError"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException",
            ) => {
                format!(": the bucket is not in region {}: set s3.region, or s3.endpoint", self.region)
            }
            (_, "NoSuchBucket") => {
                told("there is no such bucket: check the source for a mistake, and s3.endpoint")
            }
            (_, "NoSuchKey") => told("the bucket has no such object: check the source for a mistake"),
            (_, "InvalidAccessKeyId") => told("the server does not know this AWS_ACCESS_KEY_ID"),
            (_, "SignatureDoesNotMatch") => {
                told("AWS_SECRET_ACCESS_KEY is not the one of this AWS_ACCESS_KEY_ID")
            }
            (_, "RequestTimeTooSkewed") => told("this machine's clock is wrong"),
            (403, _) if self.signed && self.is_about_time() => told("this machine's clock is wrong"),
            (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
                told("AWS_SESSION_TOKEN has expired or is another session's: renew the credentials")
            }
            (404, _) => told("check the source for a mistake"),
            (401 | 403, _) if self.signed => told(
                "the credentials may not read the object, or there is none: grant them s3:GetObject on it",
            ),
            (401 | 403, _) => told(
                "the bucket is not public: name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in credentialsSecret",
            ),
            (_, "") => String::new(),
            (_, code) => told(code),
        }
    }

    /// Whether a signature that was just made is refused as too old or too new, which has no code of its own.
    fn is_about_time(&self) -> bool {
        let texts = ["<Message>Request has expired", "<Message>Request is not yet valid", "is not valid yet"];
        texts.iter().any(|text| self.body.contains(text))
    }

    /// The text of an element of the body. S3's errors are flat and carry no attributes there.
    fn element(&self, name: &str) -> Option<&str> {
        let (_, rest) = self.body.split_once(&format!("<{name}>"))?;
        let (text, _) = rest.split_once('<')?;
        let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        (plain && !text.is_empty() && text.len() <= 64).then_some(text)
    }
}

fn is_region(text: &str) -> bool {
    text.len() <= 32 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_cause_and_remedy() {
        let check = |status: u16, region: Option<&str>, body: &str, signed: bool, says: &str| {
            let refusal = Refusal { status, bucket_region: region, body, signed, region: "us-east-1" };
            let text = refusal.explain();
            assert!(text.contains(says), "{status} {body}: {text}");
            assert_eq!(text.is_empty(), says.is_empty(), "{text}");
        };
        let code = |code: &str| {
            format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m</Message></Error>")
        };
        check(301, Some("eu-west-1"), &code("PermanentRedirect"), true, "set s3.region to eu-west-1");
        let malformed = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-north-1</Region></Error>";
        check(400, None, malformed, true, "set s3.region to eu-north-1");
        check(400, None, &code("AuthorizationHeaderMalformed"), true, "not in region us-east-1");
        check(403, Some("us-east-1"), &code("AccessDenied"), true, "grant them s3:GetObject");
        let expired = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";
        check(403, None, expired, true, "clock is wrong");
        let query =
            "<Error><Code>AuthorizationQueryParametersError</Code><Region>eu-north-1</Region></Error>";
        check(400, None, query, true, "set s3.region to eu-north-1");
        check(403, None, &code("AccessDenied"), false, "the bucket is not public");
        check(403, None, &code("SignatureDoesNotMatch"), true, "AWS_SECRET_ACCESS_KEY is not the one");
        check(403, None, &code("InvalidAccessKeyId"), true, "does not know this AWS_ACCESS_KEY_ID");
        check(403, None, &code("RequestTimeTooSkewed"), true, "clock is wrong");
        check(400, None, &code("ExpiredToken"), true, "renew the credentials");
        check(404, None, &code("NoSuchBucket"), true, "no such bucket");
        check(404, None, &code("NoSuchKey"), true, "no such object");
        check(404, None, "not XML", false, "check the source");
        check(500, None, &code("InternalError"), true, "InternalError");
        check(503, None, "", true, "");
        // What a hostile server says is not repeated.
        check(500, None, "<Code>a b\u{1b}[31m</Code>", true, "");
        check(301, Some("<script>"), "", true, "not in region");
    }
}
