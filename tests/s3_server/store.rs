//! What S3 is and s3s-fs is not: it lists unfinished uploads and parts' ETags, looks at checksums, takes part numbers with gaps
//! and compares the ETags of a completion. The bytes are s3s-fs's, from the first to the last.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

/// S3's bound on all parts but the last.
const MIN_PART: u64 = 5 << 20;
/// A page, so small that tests see several.
const PAGE: usize = 4;

#[derive(Clone, Debug)]
pub struct Store {
    files: Arc<FileSystem>,
    root: PathBuf,
    uploads: Arc<Mutex<BTreeMap<String, Upload>>>,
}

#[derive(Clone, Debug)]
pub struct Upload {
    key: String,
    began: SystemTime,
    parts: BTreeMap<i32, (String, u64)>,
}

impl Store {
    pub fn new(root: &Path) -> Self {
        Self {
            files: Arc::new(FileSystem::new(root).unwrap()),
            root: root.to_owned(),
            uploads: Arc::default(),
        }
    }

    pub fn unfinished(&self) -> Vec<String> {
        self.uploads.lock().unwrap().keys().cloned().collect()
    }

    pub fn parts(&self) -> Vec<(i32, u64)> {
        let uploads = self.uploads.lock().unwrap();
        let parts = uploads.values().flat_map(|upload| &upload.parts);
        parts.map(|(number, (_, size))| (*number, *size)).collect()
    }

    fn upload(&self, id: &str) -> S3Result<Upload> {
        let known = self.uploads.lock().unwrap().get(id).cloned();
        known.ok_or_else(|| s3_error!(NoSuchUpload, "The specified upload does not exist."))
    }

    fn part(&self, id: &str, number: i32) -> PathBuf {
        self.root.join(format!(".upload_id-{id}.part-{number}"))
    }

    fn there(&self, bucket: &str) -> S3Result<()> {
        if self.root.join(bucket).is_dir() {
            Ok(())
        } else {
            Err(s3_error!(NoSuchBucket, "The specified bucket does not exist"))
        }
    }

    /// What S3 looks at before it completes.
    fn check(&self, upload: &Upload, asked: &[CompletedPart]) -> S3Result<()> {
        let mut last = 0;
        for (place, part) in asked.iter().enumerate() {
            let number = part.part_number.unwrap_or_default();
            if number <= last {
                return Err(s3_error!(InvalidPartOrder));
            }
            last = number;
            let Some((etag, size)) = upload.parts.get(&number) else {
                return Err(s3_error!(InvalidPart));
            };
            if part.e_tag.as_ref().map(ETag::value) != Some(etag) {
                return Err(s3_error!(InvalidPart));
            }
            if place + 1 < asked.len() && *size < MIN_PART {
                return Err(s3_error!(EntityTooSmall));
            }
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl S3 for Store {
    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.there(&req.input.bucket)?;
        let key = req.input.key.clone();
        let response = self.files.create_multipart_upload(req).await?;
        let upload = Upload {
            key,
            began: SystemTime::now(),
            parts: BTreeMap::new(),
        };
        let id = response.output.upload_id.clone().unwrap();
        self.uploads.lock().unwrap().insert(id, upload);
        Ok(response)
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let (id, number) = (req.input.upload_id.clone(), req.input.part_number);
        let wanted = req.input.content_md5.clone();
        self.upload(&id)?;
        let response = self.files.upload_part(req).await?;
        let etag = response.output.e_tag.as_ref().unwrap().value().to_owned();
        if wanted.is_some_and(|wanted| wanted != base64_of(&etag)) {
            return Err(s3_error!(BadDigest));
        }
        let size = std::fs::metadata(self.part(&id, number)).map_or(0, |metadata| metadata.len());
        match self.uploads.lock().unwrap().get_mut(&id) {
            Some(upload) => {
                upload.parts.insert(number, (etag, size));
                Ok(response)
            }
            None => {
                let _ = std::fs::remove_file(self.part(&id, number));
                Err(s3_error!(NoSuchUpload))
            }
        }
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let input = req.input;
        let upload = self.upload(&input.upload_id)?;
        let after = input.part_number_marker.unwrap_or_default();
        let later = upload.parts.range(after + 1..);
        let parts: Vec<Part> = later
            .clone()
            .take(PAGE)
            .map(|(number, (etag, size))| Part {
                part_number: Some(*number),
                e_tag: Some(ETag::Strong(etag.clone())),
                size: i64::try_from(*size).ok(),
                ..Part::default()
            })
            .collect();
        Ok(S3Response::new(ListPartsOutput {
            is_truncated: Some(later.count() > PAGE),
            next_part_number_marker: parts.last().and_then(|part| part.part_number),
            parts: Some(parts),
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            ..ListPartsOutput::default()
        }))
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = req.input;
        self.there(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let after = (
            input.key_marker.unwrap_or_default(),
            input.upload_id_marker.unwrap_or_default(),
        );
        let uploads = self.uploads.lock().unwrap();
        let mut found: Vec<(&String, &Upload)> = uploads
            .iter()
            .filter(|(_, u)| u.key.starts_with(&prefix))
            .collect();
        found.sort_by_key(|(id, upload)| (upload.key.clone(), (*id).clone()));
        found.retain(|(id, upload)| (&upload.key, *id) > (&after.0, &after.1));
        let page = found.iter().take(PAGE);
        let last = page.clone().next_back();
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            is_truncated: Some(found.len() > PAGE),
            next_key_marker: last.map(|(_, upload)| upload.key.clone()),
            next_upload_id_marker: last.map(|(id, _)| (*id).clone()),
            uploads: Some(
                page.map(|(id, upload)| MultipartUpload {
                    key: Some(upload.key.clone()),
                    upload_id: Some((*id).clone()),
                    initiated: Some(upload.began.into()),
                    ..MultipartUpload::default()
                })
                .collect(),
            ),
            ..ListMultipartUploadsOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        mut req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let id = req.input.upload_id.clone();
        let upload = self.upload(&id)?;
        let mut asked = req
            .input
            .multipart_upload
            .take()
            .and_then(|u| u.parts)
            .unwrap_or_default();
        self.check(&upload, &asked)?;
        // s3s-fs counts from 1: numbers with gaps are renumbered, and what is not asked for goes.
        let wanted: Vec<i32> = asked.iter().filter_map(|part| part.part_number).collect();
        for number in upload.parts.keys().filter(|number| !wanted.contains(number)) {
            let _ = std::fs::remove_file(self.part(&id, *number));
        }
        for (part, place) in asked.iter_mut().zip(1..) {
            let number = part.part_number.replace(place).unwrap_or_default();
            std::fs::rename(self.part(&id, number), self.part(&id, place))
                .map_err(|_| s3_error!(InvalidPart))?;
        }
        req.input.multipart_upload = Some(CompletedMultipartUpload { parts: Some(asked) });
        let response = self.files.complete_multipart_upload(req).await?;
        self.uploads.lock().unwrap().remove(&id);
        Ok(response)
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let id = req.input.upload_id.clone();
        self.upload(&id)?;
        self.uploads.lock().unwrap().remove(&id);
        self.files.abort_multipart_upload(req).await
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.there(&req.input.bucket)?;
        let wanted = req.input.content_md5.clone();
        let response = self.files.put_object(req).await?;
        let etag = response.output.e_tag.as_ref().map(|etag| base64_of(etag.value()));
        if wanted.is_some() && wanted != etag {
            return Err(s3_error!(BadDigest));
        }
        Ok(response)
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.files.head_object(req).await
    }
}

/// Of hexadecimal digits.
fn base64_of(hex: &str) -> String {
    use base64::Engine as _;
    let bytes: Vec<u8> = (0..hex.len() / 2)
        .filter_map(|at| u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok())
        .collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
