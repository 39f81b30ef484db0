// Sends the outputs of a key to a bucket from now on: node bucket.mjs https://s3.example.com/assets
const { IMAGE_TO_3D_URL: url, IMAGE_TO_3D_KEY: key, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY } = process.env;

const answer = await fetch(`${url}/api/v1/enterprise/update_s3`, {
  method: "POST",
  headers: { "content-type": "application/json", key },
  body: JSON.stringify({
    deploy_type: "image_to_3d",
    endpoint_url: process.argv[2],
    region_name: "us-east-1",
    image_directory: "3d",
    aws_access_key_id: AWS_ACCESS_KEY_ID,
    aws_secret_access_key: AWS_SECRET_ACCESS_KEY,
  }),
});
console.log((await answer.json()).message);
process.exitCode = answer.ok ? 0 : 1;
