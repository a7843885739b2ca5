-- Every offer appears once with every variant at every point of the serving grid.
with counts as (
    select
        (select count(*) from {{ ref('deployment_options') }}) as options,
        (select count(*) from {{ ref('stg_listings') }}) as listings,
        (
            select count(*) from {{ ref('stg_serving_needs') }} where point_source = 'grid'
        ) as points
)

select * from counts where options <> listings * points
