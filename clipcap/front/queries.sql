-- -----------------------------------------------------------------------------------------------
-- Questions. Each is a view or a macro: FROM nights;   FROM images_like('some-key');

-- How far a caption is before the next candidate that says something else; null where none does.
CREATE OR REPLACE MACRO caption_margin(extra_json) AS
    TRY_CAST(TRY(json_extract_string(extra_json, '$.margin')) AS DOUBLE);

-- Every live image with each of its captions (null where it has none).
CREATE OR REPLACE VIEW captions_with_images AS
SELECT m.image_id, m.key, m.source_uri, m.width, m.height, m.taken_at, m.reference_captions,
       c.captioner_id, c.caption, c.status, c.clip_score, c.logprob_mean, c.review_reasons, c.created_at,
       m.content_sha256, m.shard, m.dt, caption_margin(c.extra_json) AS margin
FROM manifest m LEFT JOIN captions c USING (image_id, content_sha256);

-- What did the last nights do?
CREATE OR REPLACE VIEW nights AS
SELECT run_id, state, started_at, round(duration_s / 60, 1) AS minutes, listed, new, changed, deleted,
       unchanged, captioned, labelled, rejected, round(images_per_second, 2) AS images_per_second,
       error_message
FROM runs ORDER BY started_at DESC LIMIT 7;

-- Is every live image embedded, captioned and labelled, by which model, captioner and label set?
CREATE OR REPLACE VIEW coverage AS
WITH made AS (
    SELECT 'embeddings' AS table_name, model AS made_by, image_id, true AS usable FROM embeddings
    UNION ALL SELECT 'captions', captioner, image_id, status = 'ok' FROM captions
    UNION ALL SELECT 'labels', labelset, image_id, accepted FROM labels
), counted AS (
    SELECT table_name, made_by, count(DISTINCT image_id) AS images,
           count(DISTINCT image_id) FILTER (usable) AS usable
    FROM made GROUP BY ALL
)
SELECT table_name, made_by, coalesce(counted.images, 0) AS images, live.images - coalesce(counted.images, 0) AS missing,
       coalesce(counted.images - usable, 0) AS without_answer
FROM (VALUES ('embeddings'), ('captions'), ('labels')) AS wanted(table_name)
CROSS JOIN (SELECT count(*) AS images FROM manifest) AS live
LEFT JOIN counted USING (table_name)
ORDER BY ALL;

-- The captions of the newest date, most trusted first.
CREATE OR REPLACE VIEW newest_captions AS
SELECT dt, source_uri, caption, round(clip_score, 3) AS clip_score, captioner_id, key
FROM captions WHERE dt = (SELECT max(dt) FROM captions) AND status = 'ok'
ORDER BY clip_score DESC NULLS LAST, key;

-- Captions that a person should look at, least trusted first.
CREATE OR REPLACE VIEW review_queue AS
SELECT source_uri, coalesce(caption, caption_raw) AS caption, review_reasons, status,
       round(clip_score, 3) AS clip_score, round(logprob_mean, 3) AS logprob_mean, captioner_id, key,
       round(caption_margin(extra_json), 3) AS margin
FROM captions WHERE len(review_reasons) > 0 OR status <> 'ok'
ORDER BY captions.clip_score NULLS FIRST, key;

-- Why do captions wait for a second look, and which of them are not shown?
CREATE OR REPLACE VIEW captions_by_reason AS
SELECT captioner_id, reason, count(*) AS images, count(*) FILTER (status = 'suppressed') AS suppressed,
       min(coalesce(caption, caption_raw)) AS example_caption
FROM (SELECT *, unnest(review_reasons) AS reason FROM captions)
GROUP BY captioner_id, reason ORDER BY captioner_id, images DESC, reason;

-- What is in the collection, and how sure are we? By the best accepted label of each image; NULL: it
-- has none.
CREATE OR REPLACE VIEW label_mix AS
WITH best AS (
    SELECT * FROM labels
    QUALIFY row_number() OVER (PARTITION BY label_set, image_id ORDER BY accepted DESC, rank) = 1
)
SELECT label_set, if(accepted, label, NULL) AS label, count(*) AS images,
       round(count(*) / sum(count(*)) OVER (PARTITION BY label_set), 4) AS share,
       round(avg(score), 3) AS mean_score, round(avg(margin), 3) AS mean_margin
FROM best GROUP BY label_set, if(accepted, label, NULL)
ORDER BY label_set, images DESC, 2;

-- Did the mix of the newest date change against all dates before?
-- Population stability index: over 0.1 look, over 0.25 act. No rows while there is only one date.
CREATE OR REPLACE VIEW label_drift AS
WITH best AS (
         SELECT label_set, if(accepted, label, NULL) AS label, dt FROM labels
         QUALIFY row_number() OVER (PARTITION BY label_set, image_id ORDER BY accepted DESC, rank) = 1
     ),
     newest AS (SELECT label_set, max(dt) AS dt FROM best GROUP BY label_set HAVING min(dt) < max(dt)),
     counted AS (
         SELECT label_set, label, newest.dt AS newest, count(*) FILTER (best.dt = newest.dt) + 0.5 AS now,
                count(*) FILTER (best.dt < newest.dt) + 0.5 AS before
         FROM best JOIN newest USING (label_set) GROUP BY ALL
     ),
     shares AS (
         SELECT label_set, label, newest, now / sum(now) OVER whole AS p, before / sum(before) OVER whole AS q
         FROM counted WINDOW whole AS (PARTITION BY label_set)
     )
SELECT label_set, label, newest, round(p, 4) AS share_newest, round(q, 4) AS share_before,
       round((p - q) * ln(p / q), 4) AS psi,
       round(sum((p - q) * ln(p / q)) OVER (PARTITION BY label_set), 4) AS psi_of_label_set
FROM shares ORDER BY label_set, psi DESC, label;

-- Why were images left out, and which are tried again?
CREATE OR REPLACE VIEW rejects_by_reason AS
SELECT stage, reason, retryable, count(*) AS images, max(attempts) AS most_attempts,
       min(source_uri) AS example, min(error_message) AS example_message
FROM rejects GROUP BY stage, reason, retryable ORDER BY images DESC, stage, reason;

-- Images like this one, itself first: exact cosine over all embeddings of the same model.
CREATE OR REPLACE MACRO images_like(wanted, most := 10) AS TABLE
SELECT e.model, round(list_cosine_similarity(e.embedding, q.embedding), 4) AS similarity,
       m.source_uri, m.key, e.image_id
FROM (SELECT model, embedding FROM embeddings WHERE key = wanted) AS q
JOIN embeddings e USING (model) JOIN manifest m USING (image_id)
ORDER BY m.key = wanted DESC, list_cosine_similarity(e.embedding, q.embedding) DESC, m.key LIMIT most;

-- Near-duplicates: pairs whose perceptual hashes differ in at most 3 of 64 bits. Four bands of 16 bits
-- find every such pair, because one band at least must then be equal.
CREATE OR REPLACE VIEW near_duplicates AS
WITH hashed AS (
    SELECT image_id, key, source_uri, phash, ('0x' || phash)::UBIGINT AS bits FROM manifest
    WHERE phash IS NOT NULL
), bands AS (
    SELECT *, unnest([0, 1, 2, 3]) AS place,
           unnest([phash[1:4], phash[5:8], phash[9:12], phash[13:16]]) AS band
    FROM hashed
)
SELECT DISTINCT bit_count(xor(x.bits, y.bits)) AS differing_bits, x.source_uri AS one, y.source_uri AS other,
       x.key AS one_key, y.key AS other_key
FROM bands x JOIN bands y USING (place, band)
WHERE x.image_id < y.image_id AND bit_count(xor(x.bits, y.bits)) <= 3
ORDER BY ALL;

-- Where caption and label disagree: how often an accepted label is not in the caption.
CREATE OR REPLACE VIEW disagreements AS
WITH compared AS (
    SELECT l.label_set, l.label, c.captioner_id, c.caption, c.clip_score, c.source_uri,
           regexp_matches(lower(c.caption), '\b' || regexp_escape(lower(l.label)) || '(s|es)?\b') AS agrees
    FROM labels l JOIN captions c USING (image_id)
    WHERE l.accepted AND c.status = 'ok'
)
SELECT label_set, label, captioner_id, count(*) AS images, count(*) FILTER (NOT agrees) AS not_in_caption,
       min(caption) FILTER (NOT agrees) AS example_caption,
       arg_min(source_uri, caption) FILTER (NOT agrees) AS example
FROM compared GROUP BY label_set, label, captioner_id ORDER BY not_in_caption DESC, label_set, label;

-- One image out of its tar: what one range request needs. In a shell:
--   tail -c +$((first_byte + 1)) TAR | head -c $((bytes)) > image
CREATE OR REPLACE MACRO image_in_tar(wanted) AS TABLE
SELECT CASE WHEN starts_with(member, key || '.') THEN clipcap_at('shards/dt=' || dt || '/' || shard || '.tar')
            ELSE regexp_replace(source_uri, '#[^#]*$', '') END AS tar,  -- it was left in a tar of the source
       member, member_offset AS first_byte, member_offset + member_bytes - 1 AS last_byte,
       member_bytes AS bytes, media_type, content_sha256
FROM manifest WHERE key = wanted;

-- Which model and settings made these files? FROM made_with('captions/**/*.parquet');
CREATE OR REPLACE MACRO made_with(files := '*/**/dt=*/*.parquet') AS TABLE
SELECT file_name, decode(key) AS name, decode(value) AS value
FROM parquet_kv_metadata(clipcap_at(files)) WHERE decode(key) <> 'ARROW:schema'
ORDER BY ALL;
